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
    """The same with one request for each place: COUNT is a multiple of 8 elements; CUDA only."""
    num_bytes = tl.full(at.shape, COUNT * 2, tl.int32)
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r", [base_ptr + at, num_bytes], tl.int32, False, 1,
    )  # fmt: skip


@cache
def dependent_launch(device_index: int) -> bool:
    """Whether the GPU can start a kernel before the one in front of it has ended (Hopper on)."""
    return torch.cuda.get_device_capability(device_index) >= (9, 0)


def launch_options(tensor: torch.Tensor) -> dict[str, bool]:
    """Keyword arguments of a launch on the tensor's device."""
    if tensor.device.type != "cuda" or not dependent_launch(tensor.device.index):
        return {"DEPENDENT": False}
    return {"DEPENDENT": True, "launch_pdl": True}
