"""The best token of every row and its score, in one kernel; the first one of equals.

A score is a logit, or that of a draw: the race of engine/draw.py, the same clocks.
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
def _splitmix(x):
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _lowbias(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _hashed(key, counted):
    bits = _lowbias(counted.to(tl.uint32) ^ key.to(tl.uint32))
    return _lowbias(bits ^ (key >> 32).to(tl.uint32))


@triton.jit
def _exponential(bits):
    u = ((bits & 0x7FFFFFFF).to(tl.float32) + 0.5) * 4.656612873077393e-10
    small = u + u * u * (0.5 + u * 0.3333333333)
    return tl.where(u < 0.005, small, -tl.log(1.0 - u))


@triton.jit
def _clocks(seed, index, ids):
    key = _splitmix(_splitmix(seed.to(tl.uint64)) + index.to(tl.uint64))
    block = ids >> 5
    is_first = (_hashed(key, block + 0x60000000) & 31) == (ids & 31).to(tl.uint32)
    waits = tl.where(is_first, 0.0, _exponential(_hashed(key, ids)))
    return waits + _exponential(_hashed(key, block + 0x40000000)) * 0.03125


@triton.jit
def _best_of_rows(
    logits_ptr, values_ptr, places_ptr, counters_ptr, ids_ptr, pairs_ptr,
    rows_ptr, lengths_ptr, numbers_ptr, integers_ptr,
    stride, num_real, first_id, num_blocks, num_numbers, num_integers,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, DRAWS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    begin(DEPENDENT)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(
        logits_ptr + row.to(tl.int64) * stride + columns,
        mask=columns < num_real, other=float("-inf"),
    )  # fmt: skip
    x = x.to(tl.float32)
    if DRAWS:
        owner = tl.load(rows_ptr + row).to(tl.int64)
        temperature = tl.load(numbers_ptr + owner * num_numbers)
        if temperature > 0:
            seed = tl.load(integers_ptr + owner * num_integers)
            start = tl.load(integers_ptr + owner * num_integers + 1)
            index = tl.load(lengths_ptr + row).to(tl.int64) - start
            x = x / temperature - tl.log(_clocks(seed, index, columns + first_id))
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


def _part(drawn: tuple[torch.Tensor, ...] | None, first: int) -> tuple[torch.Tensor, ...] | None:
    if drawn is None:
        return None
    rows, lengths, *tables = drawn
    return rows[first : first + MAX_ROWS], lengths[first : first + MAX_ROWS], *tables


def best_of_rows(
    logits: torch.Tensor,
    num_real: int,
    first_id: int = 0,
    drawn: tuple[torch.Tensor, ...] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, V], of which ``num_real`` columns count -> ids [N] and (score, id) [N, 2] fp32.

    Ids start at ``first_id``; a row whose best score is no finite number has the id -1.
    drawn: request rows [N] int32, context lengths [N] int32, numbers [R, ..] fp32 (temperature
    first) and integers [R, ..] int64 (seed, prompt length) of requests; without it, or with the
    temperature 0, a row's score is its logit.
    """
    num_rows, width = logits.shape
    if num_rows > MAX_ROWS:
        parts = [
            best_of_rows(logits[i : i + MAX_ROWS], num_real, first_id, _part(drawn, i))
            for i in range(0, num_rows, MAX_ROWS)
        ]
        ids, pairs = (torch.cat(each) for each in zip(*parts, strict=True))
        return ids, pairs
    num_blocks = triton.cdiv(width, BLOCK)
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    pairs = torch.empty((num_rows, 2), dtype=torch.float32, device=logits.device)
    rows, lengths, numbers, integers = drawn or (ids, ids, pairs, ids[:, None])
    _best_of_rows[(num_blocks, num_rows)](
        logits, *_workspace(logits.device, num_blocks), ids, pairs, rows, lengths, numbers, integers,
        logits.stride(0), num_real, first_id, num_blocks, numbers.shape[1], integers.shape[1],
        BLOCK=BLOCK, BLOCKS=triton.next_power_of_2(num_blocks), DRAWS=drawn is not None,
        num_warps=4 if drawn is None else 8, **launch_options(logits),
    )  # fmt: skip
    return ids, pairs
