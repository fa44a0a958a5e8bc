"""Causal attention over a paged key-value cache, in plain PyTorch.

Shapes: T token rows of the step, N sequences, H query heads and K key-value heads
of this rank, D head_dim, P cache slots (blocks x block size).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(kw_only=True)
class AttentionBatch:
    """Which rows belong to which sequence, and where their keys and values lie.

    slots [T]: cache slot of each row's key and value. context_slots [N, C]: cache
    slots of each sequence's positions 0..C-1, padded with slot 0. The lengths are
    host integers: query_lengths[i] rows of the step, context_lengths[i] positions
    including them.
    """

    slots: torch.Tensor
    context_slots: torch.Tensor
    query_lengths: list[int]
    context_lengths: list[int]
    mask: torch.Tensor | None
    """Decode steps with unequal contexts: additive mask [N, 1, 1, C]."""

    @property
    def is_decode(self) -> bool:
        return max(self.query_lengths) == 1


class LayerCache:
    """Keys and values of one layer: two tensors [P, K, D]."""

    def __init__(
        self, num_slots: int, num_kv_heads: int, head_dim: int, like: torch.Tensor
    ) -> None:
        self.keys = like.new_zeros((num_slots, num_kv_heads, head_dim))
        self.values = torch.zeros_like(self.keys)

    def write(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        self.keys.index_copy_(0, slots, keys)
        self.values.index_copy_(0, slots, values)


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    sliding_window: int | None,
) -> torch.Tensor:
    """Write this step's keys and values [T, K, D], attend with queries [T, H, D] -> [T, H * D]."""
    cache.write(keys, values, batch.slots)
    if batch.is_decode and sliding_window is None:
        return _decode(queries, cache, batch)
    return _each_sequence(queries, cache, batch, sliding_window)


def _decode(queries: torch.Tensor, cache: LayerCache, batch: AttentionBatch) -> torch.Tensor:
    """One row a sequence: all sequences in one call."""
    context_keys = cache.keys[batch.context_slots].transpose(1, 2)
    context_values = cache.values[batch.context_slots].transpose(1, 2)
    out = F.scaled_dot_product_attention(
        queries[:, :, None], context_keys, context_values, attn_mask=batch.mask, enable_gqa=True
    )
    return out.flatten(1)


def _each_sequence(
    queries: torch.Tensor, cache: LayerCache, batch: AttentionBatch, sliding_window: int | None
) -> torch.Tensor:
    outputs = []
    rows = queries.split(batch.query_lengths)
    for i, (part, length) in enumerate(zip(rows, batch.context_lengths, strict=True)):
        slots = batch.context_slots[i, :length]
        mask = causal_mask(len(part), length, sliding_window, queries)
        out = F.scaled_dot_product_attention(
            part.transpose(0, 1)[None],
            cache.keys[slots].transpose(0, 1)[None],
            cache.values[slots].transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        outputs.append(out[0].transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def causal_mask(
    num_queries: int, length: int, sliding_window: int | None, like: torch.Tensor
) -> torch.Tensor | None:
    """Boolean mask [num_queries, length] of what may be seen; None for the plain square one."""
    if num_queries == length and (sliding_window is None or length <= sliding_window):
        return None
    last = torch.arange(length - num_queries, length, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)[None]
    visible = position <= last
    if sliding_window is not None:
        visible &= position > last - sliding_window
    return visible
