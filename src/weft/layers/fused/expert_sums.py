"""The outputs of experts back to their rows: weighted sums in one kernel, in the slots' order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from weft.layers.fused.language import begin, launch_options
from weft.vocabulary.routes import Routes


@triton.jit
def _sum_of_slots(
    outputs_ptr, places_ptr, ids_ptr, weights_ptr, out_ptr, num_experts, hidden,
    TOP: tl.constexpr, WEIGHS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    has_column = columns < hidden
    total = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(TOP):
        at = row * TOP + slot
        mask = has_column & (tl.load(ids_ptr + at) < num_experts)
        source = outputs_ptr + tl.load(places_ptr + at) * hidden + columns
        output = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        total += output * tl.load(weights_ptr + at) if WEIGHS else output
    tl.store(out_ptr + row * hidden + columns, total.to(out_ptr.dtype.element_ty), mask=has_column)


def sum_of_slots(
    outputs: torch.Tensor, places: torch.Tensor, routes: Routes, *, weighs: bool
) -> torch.Tensor:
    """Outputs [S, h] and each slot's place among them [S] int64 -> rows [R, h]; S = R k."""
    (num_rows, top), hidden = routes.ids.shape, outputs.shape[1]
    out = outputs.new_empty((num_rows, hidden))
    block = 1024
    _sum_of_slots[(num_rows, triton.cdiv(hidden, block))](
        outputs, places, routes.ids, routes.weights, out, routes.nobody, hidden,
        TOP=top, WEIGHS=weighs, BLOCK=block, num_warps=4, **launch_options(outputs),
    )  # fmt: skip
    return out
