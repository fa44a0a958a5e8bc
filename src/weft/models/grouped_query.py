"""Grouped-query attention: full, windowed or in chunks, with sinks, gates and norms where there are.

Shapes: T token rows, h hidden size, H and K query and key-value heads of this rank, D
head_dim.
"""

from __future__ import annotations

import torch
from torch import nn

from weft.layers.attention import AttentionStep, Heads, LayerCache, Scores
from weft.layers.linear import ColumnParallelLinear, MatrixPart, Placement, RowParallelLinear
from weft.layers.norm import RMSNorm, rms_norm
from weft.layers.shards import Piece, rows_of
from weft.layers.shared_norm import NormSums, SharedNorm
from weft.vocabulary.attention_kinds import GroupedQuery
from weft.vocabulary.model_spec import ModelSpec


class GroupedQueryAttention(nn.Module):
    """Token rows [T, h] -> partial sum [T, h] over this rank's heads."""

    def __init__(
        self,
        kind: GroupedQuery,
        spec: ModelSpec,
        prefix: str,
        norm_sums: NormSums | None,
        where: Placement,
    ) -> None:
        super().__init__()
        tp, rank = where.tp_size, where.tp_rank
        kv_parts = min(tp, kind.num_kv_heads)
        q_size, kv_size = kind.num_heads * kind.head_dim, kind.num_kv_heads * kind.head_dim
        self.has_gate = kind.output_gate
        sections = [_section(f"{prefix}.q_proj", kind.query_size, rank, tp)] + [
            _section(f"{prefix}.{which}_proj", kv_size, rank * kv_parts // tp, kv_parts)
            for which in "kv"
        ]
        hidden = spec.hidden_size
        self.qkv = ColumnParallelLinear(
            hidden, sections, bias=kind.qkv_bias, where=where, form=kind.input_format
        )
        self.output = RowParallelLinear(
            f"{prefix}.o_proj",
            q_size,
            hidden,
            bias=kind.output_bias,
            where=where,
            form=kind.output_format,
        )
        self.query_norm = self.key_norm = self.shared_norm = None
        if kind.qk_norm == "all_heads":
            self.shared_norm = SharedNorm(
                (f"{prefix}.q_norm", q_size, rank, tp),
                (f"{prefix}.k_norm", kv_size, rank * kv_parts // tp, kv_parts),
                spec.norm_eps,
                norm_sums,
                where,
            )
        if kind.qk_norm == "heads":
            self.query_norm, self.key_norm = (
                _head_norm(f"{prefix}.{which}_norm", kind, spec, where) for which in "qk"
            )
        self.sinks = None
        if kind.sinks:
            start, stop = rows_of(kind.num_heads, rank, tp)
            piece = Piece(
                source=f"{prefix}.sinks", shape=(kind.num_heads,), dim=0, start=start, stop=stop
            )
            self.sinks = where.parameter((stop - start,), [piece])
        self.heads = Heads(
            num_heads=kind.num_heads // tp,
            num_kv_heads=kind.num_kv_heads // kv_parts,
            head_dim=kind.head_dim,
            rope=kind.rope,
            scores=Scores(scale=kind.scale, window=kind.window, chunk=kind.chunk, sinks=self.sinks),
            query_norm=self.query_norm,
            key_norm=self.key_norm,
            plain_norm_eps=spec.norm_eps if kind.qk_norm == "unweighted" else None,
            temperature=kind.temperature,
        )

    def make_cache(self, num_slots: int, num_rows: int, like: torch.Tensor) -> LayerCache:  # noqa: ARG002
        """Room for keys and values of ``num_slots`` positions."""
        return LayerCache(num_slots, self.heads.num_kv_heads, self.heads.head_dim, like)

    def forward(self, x: torch.Tensor, step: AttentionStep, cache: LayerCache) -> torch.Tensor:
        qkv, gates = self.qkv(x), None
        if self.has_gate:
            qkv, gates = self._apart(qkv)
        if self.shared_norm is not None:
            qkv = self.shared_norm(qkv)
        mixed = step.mix(qkv, self.heads, cache)
        partial: torch.Tensor = self.output(mixed if gates is None else mixed * gates.sigmoid())
        return partial

    def _apart(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Projections without gates and the gates [T, H D]; each head's query has its gate behind."""
        heads, size = self.heads.num_heads, self.heads.head_dim
        both = qkv[:, : 2 * heads * size].unflatten(1, (heads, 2 * size))
        queries, gates = (part.flatten(1) for part in both.chunk(2, dim=2))
        return torch.cat((queries, qkv[:, 2 * heads * size :]), dim=1), gates


def _section(name: str, out_features: int, part: int, num_parts: int) -> MatrixPart:
    return MatrixPart(name=name, out_features=out_features, part=part, num_parts=num_parts)


def _head_norm(name: str, kind: GroupedQuery, spec: ModelSpec, where: Placement) -> RMSNorm:
    return rms_norm(name, kind.head_dim, spec.norm_eps, spec.norm_weight_offset, where)
