"""Causal attention over a paged cache, in plain PyTorch: what a step knows and does.

Shapes: T token rows of the step, S sequences, H query heads and K key-value heads
of this rank, D head_dim, V size of a value, P cache slots (blocks x block size).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from weft.layers.norm import RMSNorm
from weft.layers.rope import RotaryAngles, rotate
from weft.vocabulary.rope import Rope


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of one layer on one rank, and what is done to them before they meet.

    scale: factor of the scores, None for D^-0.5.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope
    sliding_window: int | None
    scale: float | None
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None


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


class LatentCache:
    """Latent and rotary key of one layer in one tensor [P, 1, rank + rotary size]."""

    def __init__(self, num_slots: int, size: int, like: torch.Tensor) -> None:
        self.latents = like.new_zeros((num_slots, 1, size))


Cache = LayerCache | LatentCache


class AttentionStep(Protocol):
    """One step's attention: which rows belong to which sequence, where their past lies."""

    def mix(self, qkv: torch.Tensor, heads: Heads, cache: LayerCache) -> torch.Tensor:
        """Projections [T, (H + 2 K) D] -> [T, H D]; writes the step's keys and values."""


@dataclass(kw_only=True)
class PlainAttention:
    """Attention by torch's own operators, on any device and for any type.

    angles: cos and sin of the rows. slots [T]: cache slot of each row's key and value.
    context_slots [S, C]: cache slots of each sequence's positions 0..C-1, padded with slot 0.
    The lengths are host integers: query_lengths[i] rows of the step, context_lengths[i]
    positions including them. mask: for one row a sequence and unequal contexts, additive
    [S, 1, 1, C].
    """

    angles: RotaryAngles
    slots: torch.Tensor
    context_slots: torch.Tensor
    query_lengths: list[int]
    context_lengths: list[int]
    mask: torch.Tensor | None

    def mix(self, qkv: torch.Tensor, heads: Heads, cache: LayerCache) -> torch.Tensor:
        sizes = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
        queries, keys, values = qkv.unflatten(1, (-1, heads.head_dim)).split(sizes, dim=1)
        if heads.query_norm is not None and heads.key_norm is not None:
            queries, keys = heads.query_norm(queries), heads.key_norm(keys)
        queries, keys = (rotate(x, heads.rope, self.angles) for x in (queries, keys))
        cache.write(keys, values, self.slots)
        out = self.attend(queries, cache.keys, cache.values, heads.scale, heads.sliding_window)
        return out.flatten(1)

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Queries [T, H, D] over cached keys [P, K, D] and values [P, K, V] -> [T, H, V]."""
        if queries.is_meta:  # a dry run has no values, and may have a hundred thousand sequences
            return queries.new_empty((*queries.shape[:2], values.shape[-1]))
        if max(self.query_lengths) == 1 and window is None:
            context_keys = keys[self.context_slots].transpose(1, 2)
            context_values = values[self.context_slots].transpose(1, 2)
            return F.scaled_dot_product_attention(
                queries[:, :, None],
                context_keys,
                context_values,
                attn_mask=self.mask,
                scale=scale,
                enable_gqa=True,
            )[:, :, 0]
        parts = zip(queries.split(self.query_lengths), self.context_lengths, strict=True)
        return torch.cat(
            [
                _one_sequence(part, keys[slots], values[slots], scale, window)
                for (part, length), row in zip(parts, self.context_slots, strict=True)
                for slots in (row[:length],)
            ]
        )


def _one_sequence(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """The last rows of a sequence, [T, H, D], over all its keys and values [C, K, ..]."""
    mask = causal_mask(len(queries), len(keys), window, queries)
    out = F.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


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
