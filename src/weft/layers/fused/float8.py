"""Matrices of 8-bit floats brought into 16 bits in one kernel, for products of many rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from weft.layers.fused.language import begin, launch_options


@triton.jit
def _dequantise(
    values_ptr, scales_ptr, out_ptr, num_columns, values_stride, scales_stride, group,
    BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    values = tl.load(values_ptr + row * values_stride + columns, mask=inside, other=0.0)
    scales = tl.load(scales_ptr + columns // group * scales_stride + row, mask=inside, other=0.0)
    out = (values.to(tl.float32) * scales).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * num_columns + columns, out, mask=inside)


def dequantised(values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values [O, I] (rows may lie apart) times their scales [G, O], in ``dtype``."""
    num_rows, num_columns = values.shape
    out = torch.empty((num_rows, num_columns), dtype=dtype, device=values.device)
    block = min(4096, triton.next_power_of_2(num_columns))
    _dequantise[(num_rows, triton.cdiv(num_columns, block))](
        values, scales, out, num_columns, values.stride(0), scales.stride(0),
        num_columns // len(scales), BLOCK=block, num_warps=8, **launch_options(values),
    )  # fmt: skip
    return out
