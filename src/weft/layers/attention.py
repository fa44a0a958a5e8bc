"""Causal attention over a paged cache, in plain PyTorch: what a step knows and does.

Shapes: T token rows of the step, S sequences, H query heads and K key-value heads
of this rank, D head_dim, V size of a value, P cache slots (blocks x block size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from weft.layers.norm import RMSNorm
from weft.layers.rope import RotaryAngles, rotate
from weft.layers.shared_positions import SharedPositions
from weft.vocabulary.attention_kinds import Temperature
from weft.vocabulary.rope import Rope


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What rows see of their past and how much: a factor (None: D^-0.5), windows, chunks, sinks.

    sinks [H]: a score of each head that takes its share of the softmax and gives nothing.
    """

    scale: float | None = None
    window: int | None = None
    chunk: int | None = None
    sinks: torch.Tensor | None = None

    @property
    def sees_all(self) -> bool:
        return self.window is None and self.chunk is None and self.sinks is None


@dataclass(frozen=True, kw_only=True)
class Heads:
    """The heads of one layer on one rank, and what is done to them before they meet.

    query_norm, key_norm: before they turn; plain_norm_eps: of norms without weights after that.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None
    scores: Scores
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    plain_norm_eps: float | None = None
    temperature: Temperature | None = None

    @property
    def sliding_window(self) -> int | None:
        return self.scores.window


@dataclass(frozen=True, kw_only=True)
class CachePart:
    """One of ``count`` equal parts of the heads, for a request's positions in ``slots`` [T].

    ``row``: the request's, where a state is kept instead.
    """

    slots: torch.Tensor
    row: int
    index: int
    count: int


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

    def part(self, of: CachePart) -> tuple[torch.Tensor, ...]:
        """Keys and values in one: [2, T, K / count, D]."""
        both = torch.stack((self.keys[of.slots], self.values[of.slots]))
        return (both.chunk(of.count, dim=2)[of.index],)

    def put(self, of: CachePart, parts: Sequence[torch.Tensor]) -> None:
        """Write what ``part`` gave elsewhere."""
        for held, values in zip((self.keys, self.values), parts[0], strict=True):
            share = held.shape[1] // of.count
            held[:, of.index * share : (of.index + 1) * share].index_copy_(0, of.slots, values)


class LatentCache:
    """Latent and rotary key of one layer in one tensor [P, 1, rank + rotary size]."""

    def __init__(self, num_slots: int, size: int, like: torch.Tensor) -> None:
        self.latents = like.new_zeros((num_slots, 1, size))

    def part(self, of: CachePart) -> tuple[torch.Tensor, ...]:
        """[T, rank + rotary size], which nobody divides."""
        return (self.latents[of.slots, 0],)

    def put(self, of: CachePart, parts: Sequence[torch.Tensor]) -> None:
        """Write what ``part`` gave elsewhere."""
        self.latents.index_copy_(0, of.slots, parts[0][:, None])


class RecurrentCache:
    """Of every request row: the convolution's last inputs [R, channels, K - 1], the state in fp32.

    The state is [R, V, key size, value size] for V value heads of this rank.
    """

    def __init__(
        self, inputs: tuple[int, int, int], state: tuple[int, int, int, int], like: torch.Tensor
    ) -> None:
        self.inputs = like.new_zeros(inputs)
        self.state = like.new_zeros(state, dtype=torch.float32)

    def part(self, of: CachePart) -> tuple[torch.Tensor, ...]:
        """The last inputs and the state of one request, whole."""
        return self.inputs[of.row], self.state[of.row]

    def put(self, of: CachePart, parts: Sequence[torch.Tensor]) -> None:
        """Write what ``part`` gave elsewhere."""
        for held, values in zip((self.inputs, self.state), parts, strict=True):
            held[of.row] = values


Cache = LayerCache | LatentCache | RecurrentCache


class AttentionStep(Protocol):
    """One step's attention: which rows belong to which sequence, where their past lies."""

    def mix(self, qkv: torch.Tensor, heads: Heads, cache: LayerCache) -> torch.Tensor:
        """Projections [T, (H + 2 K) D] -> [T, H D]; writes the step's keys and values."""


@dataclass(kw_only=True)
class PlainAttention:
    """Attention by torch's own operators, on any device and for any type.

    angles: cos and sin of the rows. positions [T]; rows [S]: the sequences' request rows. slots [T]: cache slot of each row's key and value.
    context_slots [S, C]: cache slots of each sequence's positions 0..C-1, padded with slot 0.
    The lengths are host integers: query_lengths[i] rows of the step, context_lengths[i]
    positions including them. mask: for one row a sequence and unequal contexts, additive
    [S, 1, 1, C].
    """

    angles: RotaryAngles
    positions: torch.Tensor
    rows: torch.Tensor
    slots: torch.Tensor
    context_slots: torch.Tensor
    query_lengths: list[int]
    context_lengths: list[int]
    mask: torch.Tensor | None
    shared: SharedPositions | None = None

    def mix(self, qkv: torch.Tensor, heads: Heads, cache: LayerCache) -> torch.Tensor:
        sizes = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
        queries, keys, values = qkv.unflatten(1, (-1, heads.head_dim)).split(sizes, dim=1)
        if heads.query_norm is not None and heads.key_norm is not None:
            queries, keys = heads.query_norm(queries), heads.key_norm(keys)
        if heads.rope is not None:
            queries, keys = (rotate(x, heads.rope, self.angles) for x in (queries, keys))
        if heads.plain_norm_eps is not None:
            shape, eps = (heads.head_dim,), heads.plain_norm_eps
            queries, keys = (F.rms_norm(x, shape, eps=eps) for x in (queries, keys))
        if heads.temperature is not None:
            queries = queries * self._temperatures(heads.temperature).to(queries)
        cache.write(keys, values, self.slots)
        return self.attend(queries, cache.keys, cache.values, heads.scores).flatten(1)

    def _temperatures(self, rule: Temperature) -> torch.Tensor:
        """Factors [T, 1, 1] of the rows' queries."""
        reached = ((self.positions.float() + 1) / rule.floor).floor().log1p()
        return (1 + rule.scale * reached)[:, None, None]

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        """Queries [T, H, D] over cached keys [P, K, D] and values [P, K, V] -> [T, H, V]."""
        if self.shared is not None and self.query_lengths != self.context_lengths:
            every = self.shared.gather(queries)
            outputs = every.new_empty((*every.shape[:2], values.shape[-1]))
            return self.shared.combine(outputs, outputs[..., 0].float())
        if queries.is_meta:  # a dry run has no values, and may have a hundred thousand sequences
            return queries.new_empty((*queries.shape[:2], values.shape[-1]))
        if max(self.query_lengths) == 1 and scores.sees_all:
            context_keys = keys[self.context_slots].transpose(1, 2)
            context_values = values[self.context_slots].transpose(1, 2)
            return F.scaled_dot_product_attention(
                queries[:, :, None],
                context_keys,
                context_values,
                attn_mask=self.mask,
                scale=scores.scale,
                enable_gqa=True,
            )[:, :, 0]
        parts = zip(queries.split(self.query_lengths), self.context_lengths, strict=True)
        return torch.cat(
            [
                _one_sequence(part, keys[slots], values[slots], scores)
                for (part, length), row in zip(parts, self.context_slots, strict=True)
                for slots in (row[:length],)
            ]
        )


def _one_sequence(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """The last rows of a sequence, [T, H, D], over all its keys and values [C, K, ..]."""
    mask = causal_mask(len(queries), len(keys), scores, queries)
    queries, keys, values = (x.transpose(0, 1)[None] for x in (queries, keys, values))
    if scores.sinks is not None:
        return _with_sinks(queries[0], keys[0], values[0], scores, mask).transpose(0, 1)
    out = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scores.scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def _with_sinks(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scores: Scores,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """[H, T, D] over [K, C, ..], a sink beside the scores of each row, softmax in fp32."""
    assert scores.sinks is not None
    if mask is None:
        mask = queries.new_ones(queries.shape[1], keys.shape[1], dtype=torch.bool).tril()
    keys, values = (x.repeat_interleave(len(queries) // len(x), dim=0) for x in (keys, values))
    seen = queries @ keys.transpose(1, 2) * (scores.scale or queries.shape[-1] ** -0.5)
    sinks = scores.sinks.to(seen)[:, None, None].expand(-1, seen.shape[1], 1)
    shares = torch.cat((seen.masked_fill(~mask, float("-inf")), sinks), dim=-1)
    return shares.softmax(dim=-1, dtype=torch.float32)[..., :-1].to(values) @ values


def causal_mask(
    num_queries: int, length: int, scores: Scores, like: torch.Tensor
) -> torch.Tensor | None:
    """Boolean mask [num_queries, length] of what may be seen; None for the plain square one."""
    window, chunk = scores.window or length, scores.chunk or length
    if num_queries == length and length <= min(window, chunk):
        return None
    last = torch.arange(length - num_queries, length, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)[None]
    visible = (position <= last) & (position > last - window)
    return visible & (position // chunk == last // chunk)
