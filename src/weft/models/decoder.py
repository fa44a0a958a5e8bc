"""The decoder: Llama, Mistral, Mixtral, Qwen2, Qwen3 and Qwen3-MoE in plain PyTorch.

One class a part, no branches on parallelism. A rank builds the layers of its own
pipeline stage with its own shard of every matrix; ``stream`` reduces partial sums
(see layers/residual_stream.py).

Shapes: T token rows, N sequences, h hidden size, H and K query and key-value heads
of this rank, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from weft.layers.attention import AttentionStep, Heads, LayerCache
from weft.layers.embedding import VocabularyEmbedding, VocabularyHead, vocabulary_shard
from weft.layers.expert_exchange import ExpertExchange
from weft.layers.linear import (
    ColumnParallelLinear,
    Placement,
    RowParallelLinear,
    Section,
    gated_linear,
)
from weft.layers.norm import RMSNorm
from weft.layers.residual_stream import ResidualStream
from weft.models.moe import MixtureOfExperts
from weft.vocabulary.feed_forward_kinds import Dense
from weft.vocabulary.model_spec import ModelSpec


@dataclass(kw_only=True)
class StepBatch:
    """One engine step: token ids [T], the rows [N] whose logits are wanted (None: all)."""

    token_ids: torch.Tensor
    logit_rows: torch.Tensor | None
    attention: AttentionStep

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(kw_only=True)
class Boundary:
    """What crosses a pipeline boundary: hidden states [rows, h] and their residual (or None)."""

    hidden: torch.Tensor
    residual: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class Streams:
    """How rows travel: between the blocks, around the feed-forward blocks, between experts."""

    residual: ResidualStream
    mlp: ResidualStream
    experts: ExpertExchange | None = None


class Attention(nn.Module):
    """Token rows [T, h] -> partial sum [T, h] over this rank's heads."""

    def __init__(self, spec: ModelSpec, layer: int, prefix: str, where: Placement) -> None:
        super().__init__()
        tp, rank = where.tp_size, where.tp_rank
        kv_parts = min(tp, spec.num_kv_heads)
        kv_size = spec.num_kv_heads * spec.head_dim
        query = Section(
            name=f"{prefix}.q_proj",
            out_features=spec.num_heads * spec.head_dim,
            part=rank,
            num_parts=tp,
        )
        key, value = (
            Section(
                name=f"{prefix}.{which}_proj",
                out_features=kv_size,
                part=rank * kv_parts // tp,
                num_parts=kv_parts,
            )
            for which in "kv"
        )
        self.qkv = ColumnParallelLinear(
            spec.hidden_size, [query, key, value], bias=spec.qkv_bias, where=where
        )
        self.output = RowParallelLinear(
            f"{prefix}.o_proj",
            spec.num_heads * spec.head_dim,
            spec.hidden_size,
            bias=spec.output_bias,
            where=where,
        )
        norms: list[RMSNorm | None] = [None, None]
        if spec.qk_norm:
            norms = [
                RMSNorm(f"{prefix}.{which}_norm", spec.head_dim, spec.norm_eps, where)
                for which in "qk"
            ]
        self.query_norm, self.key_norm = norms
        self.heads = Heads(
            num_heads=spec.num_heads // tp,
            num_kv_heads=spec.num_kv_heads // kv_parts,
            head_dim=spec.head_dim,
            sliding_window=spec.attention(layer).window,
            query_norm=norms[0],
            key_norm=norms[1],
        )

    def forward(self, x: torch.Tensor, batch: StepBatch, cache: LayerCache) -> torch.Tensor:
        partial: torch.Tensor = self.output(batch.attention.mix(self.qkv(x), self.heads, cache))
        return partial


class MLP(nn.Module):
    """Token rows [T, h] -> partial sum [T, h]: down(activation(gate(x)) * up(x))."""

    def __init__(self, kind: Dense, hidden_size: int, prefix: str, where: Placement) -> None:
        super().__init__()
        self.activation = kind.activation
        sections = [
            Section(
                name=f"{prefix}.{which}_proj",
                out_features=kind.intermediate_size,
                part=where.tp_rank,
                num_parts=where.tp_size,
            )
            for which in ("gate", "up")
        ]
        self.gate_up = ColumnParallelLinear(hidden_size, sections, bias=kind.bias, where=where)
        self.down = RowParallelLinear(
            f"{prefix}.down_proj",
            kind.intermediate_size,
            hidden_size,
            bias=kind.bias,
            where=where,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        partial: torch.Tensor = self.down(
            gated_linear(x, self.gate_up.weight, self.gate_up.bias, self.activation)
        )
        return partial


class DecoderLayer(nn.Module):
    """Attention and MLP (or experts) with the norms in front of them."""

    def __init__(self, spec: ModelSpec, index: int, streams: Streams, where: Placement):
        super().__init__()
        prefix = f"model.layers.{index}"
        self.site, self.stream = f"layers.{index}", streams.residual
        self.input_norm = RMSNorm(
            f"{prefix}.input_layernorm", spec.hidden_size, spec.norm_eps, where
        )
        self.attention = Attention(spec, index, f"{prefix}.self_attn", where)
        self.mlp_norm = RMSNorm(
            f"{prefix}.post_attention_layernorm", spec.hidden_size, spec.norm_eps, where
        )
        self.mlp: nn.Module
        kind = spec.feed_forward(index)
        if isinstance(kind, Dense):
            self.mlp = MLP(kind, spec.hidden_size, f"{prefix}.mlp", where)
            self.mlp_stream = streams.residual
        else:
            assert streams.experts is not None
            self.mlp = MixtureOfExperts(spec, prefix, streams.experts, where)
            self.mlp_stream = streams.mlp

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor, batch: StepBatch, cache: LayerCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised stream rows and residual -> the MLP's partial sum and the residual."""
        rows = self.stream.enter(x, batch.num_tokens, f"{self.site}.attention")
        partial = self.attention(rows, batch, cache)
        x, residual = self.stream.reduce_and_norm(
            partial, residual, self.mlp_norm, f"{self.site}.attention"
        )
        rows = self.mlp_stream.enter(x, batch.num_tokens, f"{self.site}.mlp")
        return self.mlp(rows), residual


class DecoderStage(nn.Module):
    """The consecutive layers of one pipeline stage, with embedding or head where it has them."""

    def __init__(
        self,
        spec: ModelSpec,
        layers: range,
        streams: Streams,
        where: Placement,
    ) -> None:
        super().__init__()
        self.spec, self.streams = spec, streams
        self.is_first, self.is_last = layers.start == 0, layers.stop == spec.num_layers
        self._layers = [DecoderLayer(spec, i, streams, where) for i in layers]
        self.layers = nn.ModuleList(self._layers)
        self.embedding = self.final_norm = self.head = None
        table = None
        if self.is_first or (self.is_last and spec.tie_embeddings):
            table = vocabulary_shard(
                "model.embed_tokens.weight", spec.vocab_size, spec.hidden_size, where
            )
        if self.is_first:
            assert table is not None
            self.embedding = VocabularyEmbedding(table, spec.vocab_size, where)
        if self.is_last:
            self.final_norm = RMSNorm("model.norm", spec.hidden_size, spec.norm_eps, where)
            if table is None or not spec.tie_embeddings:
                table = vocabulary_shard("lm_head.weight", spec.vocab_size, spec.hidden_size, where)
            self.head = VocabularyHead(table, spec.vocab_size, where)

    def forward(
        self, batch: StepBatch, caches: list[LayerCache], received: Boundary | None
    ) -> Boundary | torch.Tensor:
        """What the next stage needs; on the last stage this rank's logits [N, ceil(v/t)]."""
        x, residual = self._start(batch, received)
        following = [*(layer.input_norm for layer in self._layers[1:]), self.final_norm]
        for layer, norm, cache in zip(self._layers, following, caches, strict=True):
            partial, residual = layer(x, residual, batch, cache)
            if norm is None:
                hidden = layer.mlp_stream.reduce(partial, f"{layer.site}.mlp")
                return Boundary(hidden=hidden[: len(residual)], residual=residual)
            x, residual = layer.mlp_stream.reduce_and_norm(
                partial, residual, norm, f"{layer.site}.mlp"
            )
        rows = self.streams.residual.enter(x, batch.num_tokens, "head")
        assert self.head is not None
        logits: torch.Tensor = self.head(
            rows if batch.logit_rows is None else rows[batch.logit_rows]
        )
        return logits

    def _start(
        self, batch: StepBatch, received: Boundary | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first_norm = self._layers[0].input_norm
        if self.embedding is not None:
            partial = self.embedding(batch.token_ids)
            return self.streams.residual.reduce_and_norm(partial, None, first_norm, "embedding")
        assert received is not None
        return first_norm.add(received.hidden, received.residual)
