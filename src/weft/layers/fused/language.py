"""Helpers that several kernels share: dependent launch, and where Triton can be used."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda


@triton.jit
def begin(DEPENDENT: tl.constexpr):
    """Let the next kernel's blocks come in early, then wait for the kernel before.

    Nothing that another kernel wrote may be read, and nothing written, before this call.
    """
    if DEPENDENT:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()


@triton.jit
def prefetch_row(base_ptr, at, COUNT: tl.constexpr):
    """Ask the L2 cache for COUNT 16-bit elements from each place ``at`` [N] on; CUDA only."""
    lines = tl.arange(0, COUNT // 64)[None, :] * 64
    tl.inline_asm_elementwise(
        "{ prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l", [base_ptr + at[:, None] + lines], tl.int32, False, 1,
    )  # fmt: skip


@triton.jit
def prefetch_block(base_ptr, at, COUNT: tl.constexpr):
    """The same with one request for each place: COUNT elements are multiples of 16 bytes; CUDA only."""
    num_bytes = tl.full(
        at.shape, COUNT * base_ptr.dtype.element_ty.primitive_bitwidth // 8, tl.int32
    )
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r", [base_ptr + at, num_bytes], tl.int32, False, 1,
    )  # fmt: skip


@triton.jit
def brain_floats(w):
    """8-bit floats (not NaN) as bfloat16, by bits and one exact product; CUDA only.

    Conversion instructions take several times as long.
    """
    # Sign, exponent and mantissa in bfloat16's places are the value times 2 ** -120.
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 both, rest, factor;
        mov.b32 factor, 0x7B807B80;
        prmt.b32 both, $2, 0, 0x1404;
        shr.b32 rest, both, 4;
        and.b32 rest, rest, 0x07F007F0;
        lop3.b32 both, both, 0x80008000, rest, 0xEA;
        mul.bf16x2 $0, both, factor;
        prmt.b32 both, $2, 0, 0x3424;
        shr.b32 rest, both, 4;
        and.b32 rest, rest, 0x07F007F0;
        lop3.b32 both, both, 0x80008000, rest, 0xEA;
        mul.bf16x2 $1, both, factor;
        }""",
        "=r,=r,r", [w], tl.bfloat16, True, 4,
    )  # fmt: skip


@triton.jit
def as_type_of(w, x):
    """Weights in the type of ``x``."""
    if (w.dtype == tl.float8e4nv) & (x.dtype == tl.bfloat16):
        return brain_floats(w)
    else:  # noqa: RET505 - pruned while compiling
        return w.to(x.dtype)


@cache
def dependent_launch(device_index: int) -> bool:
    """Whether the GPU can start a kernel before the one in front of it has ended (Hopper on)."""
    return torch.cuda.get_device_capability(device_index) >= (9, 0)


def launch_options(tensor: torch.Tensor) -> dict[str, bool]:
    """Keyword arguments of a launch on the tensor's device."""
    if tensor.device.type != "cuda" or not dependent_launch(tensor.device.index):
        return {"DEPENDENT": False}
    return {"DEPENDENT": True, "launch_pdl": True}
