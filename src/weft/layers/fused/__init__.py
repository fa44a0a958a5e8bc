"""Triton kernels for the decode step and the element-wise parts of prefill (CUDA only)."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

_TYPES = (torch.bfloat16, torch.float16)


def takes(x: torch.Tensor) -> bool:
    """Whether the kernels of this package run on tensors like ``x``."""
    return x.device.type == "cuda" and x.dtype in _TYPES and installed()


@cache
def installed() -> bool:
    """Whether Triton is there."""
    return find_spec("triton") is not None
