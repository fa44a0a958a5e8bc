"""Grouped-query attention (Llama, Mistral, Qwen, Gemma): full, or windowed in some layers.

Shapes: T token rows, h hidden size, H and K query and key-value heads of this rank, D
head_dim.
"""

from __future__ import annotations

import torch
from torch import nn

from weft.layers.attention import AttentionStep, Heads, LayerCache
from weft.layers.linear import ColumnParallelLinear, Placement, RowParallelLinear, Section
from weft.layers.norm import RMSNorm, rms_norm
from weft.vocabulary.attention_kinds import GroupedQuery
from weft.vocabulary.model_spec import ModelSpec


class GroupedQueryAttention(nn.Module):
    """Token rows [T, h] -> partial sum [T, h] over this rank's heads."""

    def __init__(self, kind: GroupedQuery, spec: ModelSpec, prefix: str, where: Placement) -> None:
        super().__init__()
        tp, rank = where.tp_size, where.tp_rank
        kv_parts = min(tp, kind.num_kv_heads)
        q_size, kv_size = kind.num_heads * kind.head_dim, kind.num_kv_heads * kind.head_dim
        sections = [_section(f"{prefix}.q_proj", q_size, rank, tp)] + [
            _section(f"{prefix}.{which}_proj", kv_size, rank * kv_parts // tp, kv_parts)
            for which in "kv"
        ]
        self.qkv = ColumnParallelLinear(spec.hidden_size, sections, bias=kind.qkv_bias, where=where)
        self.output = RowParallelLinear(
            f"{prefix}.o_proj", q_size, spec.hidden_size, bias=kind.output_bias, where=where
        )
        self.query_norm = self.key_norm = None
        if kind.qk_norm:
            self.query_norm, self.key_norm = (
                _head_norm(f"{prefix}.{which}_norm", kind, spec, where) for which in "qk"
            )
        self.heads = Heads(
            num_heads=kind.num_heads // tp,
            num_kv_heads=kind.num_kv_heads // kv_parts,
            head_dim=kind.head_dim,
            rope=kind.rope,
            sliding_window=kind.window,
            scale=kind.scale,
            query_norm=self.query_norm,
            key_norm=self.key_norm,
        )

    def make_cache(self, num_slots: int, like: torch.Tensor) -> LayerCache:
        """Room for keys and values of ``num_slots`` positions."""
        return LayerCache(num_slots, self.heads.num_kv_heads, self.heads.head_dim, like)

    def forward(self, x: torch.Tensor, step: AttentionStep, cache: LayerCache) -> torch.Tensor:
        partial: torch.Tensor = self.output(step.mix(self.qkv(x), self.heads, cache))
        return partial


def _section(name: str, out_features: int, part: int, num_parts: int) -> Section:
    return Section(name=name, out_features=out_features, part=part, num_parts=num_parts)


def _head_norm(name: str, kind: GroupedQuery, spec: ModelSpec, where: Placement) -> RMSNorm:
    return rms_norm(name, kind.head_dim, spec.norm_eps, spec.norm_weight_offset, where)
