"""The largest logit of every row and where it is, in one kernel; the first one of equals.

Shapes: N rows, V columns.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from weft.layers.fused.language import begin, launch_options

BLOCK = 4096
MAX_ROWS = 1024


@triton.jit
def _best_of_rows(
    logits_ptr, values_ptr, places_ptr, counters_ptr, ids_ptr, pairs_ptr,
    stride, num_real, first_id, num_blocks,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    begin(DEPENDENT)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(
        logits_ptr + row.to(tl.int64) * stride + columns,
        mask=columns < num_real, other=float("-inf"),
    )  # fmt: skip
    x = x.to(tl.float32)
    x = tl.where(x == x, x, float("inf"))  # noqa: PLR0124 - NaN is not itself
    value, place = tl.max(x, axis=0, return_indices=True)
    tl.store(values_ptr + row * num_blocks + block, value)
    tl.store(places_ptr + row * num_blocks + block, block * BLOCK + place)
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr + row, 1) != num_blocks - 1:
        return
    tl.store(counters_ptr + row, 0)
    part = tl.arange(0, BLOCKS)
    at = row * num_blocks + part
    values = tl.load(
        values_ptr + at, mask=part < num_blocks, other=float("-inf"), cache_modifier=".cg"
    )
    places = tl.load(places_ptr + at, mask=part < num_blocks, other=0, cache_modifier=".cg")
    value, winner = tl.max(values, axis=0, return_indices=True)
    token = tl.sum(tl.where(part == winner, places, 0)) + first_id
    token = tl.where(tl.abs(value) < float("inf"), token, -1)
    tl.store(ids_ptr + row, token.to(tl.int64))
    tl.store(pairs_ptr + row * 2, value)
    tl.store(pairs_ptr + row * 2 + 1, token.to(tl.float32))


@cache
def _workspace(device: torch.device, num_blocks: int) -> tuple[torch.Tensor, ...]:
    values = torch.empty(MAX_ROWS * num_blocks, dtype=torch.float32, device=device)
    places = torch.empty(MAX_ROWS * num_blocks, dtype=torch.int32, device=device)
    return values, places, torch.zeros(MAX_ROWS, dtype=torch.int32, device=device)


def best_of_rows(
    logits: torch.Tensor, num_real: int, first_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, V], of which ``num_real`` columns count -> ids [N] and (value, id) [N, 2] fp32.

    Ids start at ``first_id``; a row whose largest logit is no finite number has the id -1.
    """
    num_rows, stride = logits.shape
    num_blocks = triton.cdiv(stride, BLOCK)
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    pairs = torch.empty((num_rows, 2), dtype=torch.float32, device=logits.device)
    _best_of_rows[(num_blocks, num_rows)](
        logits, *_workspace(logits.device, num_blocks), ids, pairs,
        stride, num_real, first_id, num_blocks,
        BLOCK=BLOCK, BLOCKS=triton.next_power_of_2(num_blocks), **launch_options(logits),
    )  # fmt: skip
    return ids, pairs
