"""Attention of long fresh prompts on CUDA: cuDNN's kernel, one prompt at a time.

cuDNN makes a plan for every shape, which takes about a tenth of a second (H200: 70 to 270 ms), in
the middle of a step. So prompts are padded to a few lengths, whose plans can be made beforehand;
the padding comes last, where causal rows before it do not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

LONG: Final = 2048
"""Rows from which attention is enough of a step to gain from the faster kernel."""
_STEPS: Final = 4
"""Lengths between one power of two and the next."""


def padded_length(length: int) -> int:
    """The least of the lengths with plans, from ``LONG`` on, that holds ``length`` rows."""
    unit = max(1 << (length - 1).bit_length() - 1, LONG) // _STEPS
    return -(-length // unit) * unit


def padded_lengths(most: int) -> list[int]:
    """All that prompts of up to ``most`` rows need."""
    lengths: list[int] = []
    length = LONG
    while most >= LONG and (not lengths or lengths[-1] < most):
        lengths.append(length)
        length = padded_length(length + 1)
    return lengths


def long_prompts(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """Causal attention of queries [T, H, D] with keys, values [T, K, D] -> [T, H D]."""
    parts = (each.split(list(lengths)) for each in (queries, keys, values))
    return torch.cat([_one(*prompt) for prompt in zip(*parts, strict=True)])


def _one(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    length = len(queries)
    more = padded_length(length) - length
    q, k, v = (
        F.pad(x, (0, 0, 0, 0, 0, more)).unsqueeze(0).transpose(1, 2)
        for x in (queries, keys, values)
    )
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out[0, :, :length].transpose(0, 1).flatten(1)


def make_plans(
    num_heads: int, num_kv_heads: int, head_dim: int, most: int, like: torch.Tensor
) -> None:
    """Make the plans of prompts of up to ``most`` rows beforehand."""
    for length in padded_lengths(most):
        queries = like.new_zeros((length, num_heads, head_dim))
        keys = like.new_zeros((length, num_kv_heads, head_dim))
        long_prompts(queries, keys, keys, [length])
