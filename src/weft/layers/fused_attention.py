"""Attention on CUDA for 16-bit types: one kernel for decodes, torch's best for prompts.

In a graph one kernel computes both: how rows divide among sequences is not known there.
Shapes as in layers/attention.py; a step's sequences of one row that are decodes come first.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache as remember
from typing import Any

import torch

from weft.layers.attention import Heads, LayerCache
from weft.layers.fused.decode_attention import DecodeWorkspace, decode_attention
from weft.layers.fused.elementwise import rotate_and_store
from weft.layers.fused.paged_attention import paged_attention
from weft.layers.long_prompts import LONG, long_prompts


@dataclass(kw_only=True)
class Decodes:
    """B sequences of one row: request rows [B] and lengths [B], int32 on the device."""

    rows: torch.Tensor
    lengths: torch.Tensor


@dataclass(kw_only=True)
class Prompts:
    """The other rows: positions and slots [T], and each sequence's rows and whole length.

    query_ends, context_ends [S + 1] int32: where each sequence's begin and end, on the device;
    context_slots: cache slots of all positions of the sequences that had some before.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    query_ends: torch.Tensor
    context_ends: torch.Tensor
    query_lengths: list[int]
    context_lengths: list[int]
    context_slots: torch.Tensor | None

    @property
    def is_fresh(self) -> bool:
        return self.query_lengths == self.context_lengths

    @property
    def are_long(self) -> bool:
        """Whether all are fresh and so long that their own plans pay."""
        return self.is_fresh and min(self.query_lengths) >= LONG


@dataclass(kw_only=True)
class PagedAttention:
    """A step of any sequences whose T rows are described on the device (for graphs).

    positions, slots [T] int64; pieces and table as in ``paged_attention``.
    """

    cos_sin: torch.Tensor
    table: torch.Tensor
    block_size: int
    positions: torch.Tensor
    slots: torch.Tensor
    pieces: torch.Tensor

    def mix(self, qkv: torch.Tensor, heads: Heads, cache: LayerCache) -> torch.Tensor:
        turn_and_keep(self, qkv, self.positions, self.slots, heads, cache)
        return paged_attention(
            qkv,
            cache.keys,
            cache.values,
            self.table,
            self.pieces,
            block_size=self.block_size,
            window=heads.sliding_window,
        )


@dataclass(kw_only=True)
class FusedAttention:
    """One step: its decodes, its prompts, the table of blocks [request rows, ..] int32."""

    cos_sin: torch.Tensor
    table: torch.Tensor
    workspace: DecodeWorkspace
    block_size: int
    decodes: Decodes | None
    prompts: Prompts | None

    def mix(self, qkv: torch.Tensor, heads: Heads, cache: LayerCache) -> torch.Tensor:
        if self.prompts is None:
            return self._decode(qkv, heads, cache)
        if self.decodes is None:
            return self._prompt(qkv, self.prompts, heads, cache)
        count = len(self.decodes.rows)
        parts = (
            self._decode(qkv[:count], heads, cache),
            self._prompt(qkv[count:], self.prompts, heads, cache),
        )
        return torch.cat(parts)

    def _decode(self, qkv: torch.Tensor, heads: Heads, cache: LayerCache) -> torch.Tensor:
        assert self.decodes is not None
        return decode_attention(
            qkv,
            self.cos_sin,
            cache.keys,
            cache.values,
            self.table,
            self.decodes.rows,
            self.decodes.lengths,
            self.workspace,
            block_size=self.block_size,
            norms=_norms(heads),
            eps=heads.query_norm.eps if heads.query_norm else 0.0,
            window=heads.sliding_window,
        )

    def _prompt(
        self, qkv: torch.Tensor, prompts: Prompts, heads: Heads, cache: LayerCache
    ) -> torch.Tensor:
        turn_and_keep(self, qkv, prompts.positions, prompts.slots, heads, cache)
        sizes = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]
        queries, keys, values = qkv.unflatten(1, (-1, heads.head_dim)).split(sizes, dim=1)
        if prompts.are_long and heads.sliding_window is None:
            return long_prompts(queries, keys, values, prompts.query_lengths)
        if prompts.context_slots is not None:
            keys = self._read(cache.keys, prompts.context_slots)
            values = self._read(cache.values, prompts.context_slots)
        return _ragged(queries, keys, values, prompts, heads)

    def _read(self, cached: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Rows [.., K, D] of the cache at ``slots``."""
        num_slots, num_kv_heads, head_dim = cached.shape
        size = self.block_size
        blocks = cached.view(num_slots // size, num_kv_heads, size, head_dim)
        return blocks[slots // size, :, slots % size]


def turn_and_keep(
    step: PagedAttention | FusedAttention,
    qkv: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    heads: Heads,
    cache: LayerCache,
) -> None:
    """Turn queries and keys of the rows in place, and put keys and values into the cache."""
    eps = heads.query_norm.eps if heads.query_norm else 0.0
    rotate_and_store(
        qkv,
        step.cos_sin,
        positions,
        slots,
        cache.keys,
        cache.values,
        _norms(heads),
        eps,
        block_size=step.block_size,
    )


def _norms(heads: Heads) -> tuple[torch.Tensor, torch.Tensor] | None:
    if heads.query_norm is None or heads.key_norm is None:
        return None
    return heads.query_norm.weight, heads.key_norm.weight


def _ragged(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prompts: Prompts,
    heads: Heads,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    window = (heads.sliding_window or 0) - 1
    out = varlen_attn(
        queries,
        keys.contiguous(),
        values.contiguous(),
        prompts.query_ends,
        prompts.context_ends,
        max(prompts.query_lengths),
        max(prompts.context_lengths),
        window_size=(window, 0),
        **_grouped_option(),
    )
    assert isinstance(out, torch.Tensor)
    return out.flatten(1)


@remember
def _grouped_option() -> dict[str, Any]:
    """Newer releases ask to be told that heads are shared."""
    from torch.nn.attention.varlen import varlen_attn

    known = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return {"enable_gqa": True} if known else {}
