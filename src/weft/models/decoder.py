"""The decoder: one loop over layers, whatever their kinds (parts.py builds them).

No branches on parallelism. A rank builds the layers of its own pipeline stage with its own
shard of every matrix; a stream reduces partial sums (see layers/residual_stream.py).

Shapes: T token rows, N sequences, h hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from weft.layers.attention import AttentionStep, Cache
from weft.layers.embedding import VocabularyEmbedding, VocabularyHead, vocabulary_shard
from weft.layers.expert_exchange import ExpertExchange
from weft.layers.linear import Placement
from weft.layers.norm import RMSNorm, following, rms_norm
from weft.layers.residual_stream import (
    JoinedRows,
    JoiningStream,
    LeavingStream,
    ResidualStream,
    ScatteredStream,
)
from weft.layers.shared_norm import NormSums
from weft.models.parts import build_attention, build_feed_forward
from weft.vocabulary.families import names_of
from weft.vocabulary.model_spec import ModelSpec


@dataclass(kw_only=True)
class Batch:
    """One step's tensors: token ids [T], the rows [N] whose logits are wanted (None: all).

    num_everywhere: most rows of this step on one of the replicas that share experts.
    """

    token_ids: torch.Tensor
    logit_rows: torch.Tensor | None
    attention: AttentionStep
    num_everywhere: int = 0
    has_prompts: bool = True

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(kw_only=True)
class Boundary:
    """What crosses a pipeline boundary: hidden states [rows, h] and their residual (or None)."""

    hidden: torch.Tensor
    residual: torch.Tensor | None


@dataclass(kw_only=True)
class StepState:
    """What the streams of a step go by, beside its rows."""

    has_prompts: bool = True


@dataclass(frozen=True, kw_only=True)
class Streams:
    """How rows travel: between the blocks, around the feed-forward blocks, between experts.

    norm_sums: for norms over the heads of all ranks; scattered: of the attention before experts,
    where the rows come whole and where they come split. joined: rows of the replicas that share
    experts, together in dense blocks (in others too unless ``experts`` takes its own) and the head.
    """

    residual: ResidualStream
    mlp: ResidualStream
    experts: ExpertExchange | None = None
    norm_sums: NormSums | None = None
    scattered: tuple[ScatteredStream, ScatteredStream] | None = None
    joined: JoinedRows | None = None
    state: StepState = field(default_factory=StepState)

    def joins(self, spec: ModelSpec, layer: int) -> JoinedRows | None:
        """What the feed-forward block of ``layer`` sees rows of all replicas by, if it does."""
        assert self.joined is None or self.experts is not None
        apart = self.experts is not None and not self.experts.adds_up and spec.has_experts(layer)
        return None if apart else self.joined

    def to_head(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [N, h] whose logits are wanted, as the head sees them."""
        if self.joined is None:
            return rows
        mine = rows if self.joined.tp.rank == 0 else torch.zeros_like(rows)
        return self.joined.summed(mine, "head")

    def of_feed_forward(self, spec: ModelSpec, layer: int) -> ResidualStream:
        """The stream around the feed-forward block of ``layer``."""
        joined = self.joins(spec, layer)
        if joined is not None:
            return LeavingStream(joined)
        return self.mlp if spec.has_experts(layer) else self.residual

    def of_attention(self, spec: ModelSpec, layer: int) -> ResidualStream:
        """The stream around the attention of ``layer``."""
        joined = self.joins(spec, layer)
        if joined is not None:
            return JoiningStream(joined)
        if self.scattered is None or not spec.has_experts(layer):
            return self.residual
        return self.scattered[layer > 0 and spec.has_experts(layer - 1)]


class DecoderLayer(nn.Module):
    """Attention and feed-forward part of the kinds that the spec says, with their norms."""

    def __init__(self, spec: ModelSpec, index: int, streams: Streams, where: Placement):
        super().__init__()
        names = names_of(spec)
        prefix = f"{names.model}.layers.{index}"
        self.site, self.stream = f"layers.{index}", streams.of_attention(spec, index)
        self.input_norm = self._norm(spec, f"{prefix}.{names.input_norm}", where)
        self.attention = build_attention(spec, index, prefix, streams.norm_sums, where)
        self.mlp_norm = self._norm(spec, f"{prefix}.{names.feed_forward_norm}", where)
        joined = streams.joins(spec, index)
        self.mlp = build_feed_forward(
            spec,
            index,
            f"{prefix}.{names.feed_forward}",
            streams.experts,
            where if joined is None else where.among(joined.ep),
        )
        self.mlp_stream = streams.of_feed_forward(spec, index)
        self.after_attention = self.after_mlp = None
        if spec.norms_after_blocks:
            self.after_attention = self._norm(spec, f"{prefix}.{names.after_attention}", where)
            self.after_mlp = self._norm(spec, f"{prefix}.{names.after_feed_forward}", where)
        ends_shares = index + 1 == spec.num_layers or not spec.has_experts(index + 1)
        self._scattered = self.stream if isinstance(self.stream, ScatteredStream) else None
        self._makes_whole = ends_shares and self._scattered is not None
        self._between = following(self.after_attention, self.mlp_norm)

    @staticmethod
    def _norm(spec: ModelSpec, name: str, where: Placement) -> RMSNorm:
        return rms_norm(name, spec.hidden_size, spec.norm_eps, spec.norm_weight_offset, where)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor, batch: Batch, cache: Cache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised stream rows and residual -> the MLP's partial sum and the residual."""
        rows = self.stream.enter(x, batch.num_tokens, f"{self.site}.attention")
        partial = self.attention(rows, batch.attention, cache)
        x, residual = self.stream.reduce_and_norm(
            partial, residual, self._between, f"{self.site}.attention"
        )
        count = batch.num_tokens
        if self.mlp_stream is not self.stream:
            count = max(count, batch.num_everywhere)
        rows = self.mlp_stream.enter(x, count, f"{self.site}.mlp")
        return self.mlp(rows), residual

    def close(
        self, partial: torch.Tensor, residual: torch.Tensor, norm: RMSNorm, num_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The MLP's partial sum into the stream, normalised for what follows."""
        exit_norm = following(self.after_mlp, norm)
        if self._makes_whole:
            assert self._scattered is not None
            shares = partial[: len(residual)], residual
            return exit_norm.add(*self._scattered.whole(*shares, num_tokens, f"{self.site}.mlp"))
        return self.mlp_stream.reduce_and_norm(partial, residual, exit_norm, f"{self.site}.mlp")

    def hand_over(self, partial: torch.Tensor) -> torch.Tensor:
        """The MLP's partial sum as what the next stage adds to the residual."""
        hidden = self.mlp_stream.reduce(partial, f"{self.site}.mlp")
        return hidden if self.after_mlp is None else self.after_mlp(hidden)


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
        table, names = None, names_of(spec)
        if self.is_first or (self.is_last and spec.tie_embeddings):
            table = vocabulary_shard(
                f"{names.model}.embed_tokens.weight", spec.vocab_size, spec.hidden_size, where
            )
        if self.is_first:
            assert table is not None
            self.embedding = VocabularyEmbedding(
                table, spec.vocab_size, spec.embedding_scale, where
            )
        if self.is_last:
            self.final_norm = rms_norm(
                f"{names.model}.norm",
                spec.hidden_size,
                spec.norm_eps,
                spec.norm_weight_offset,
                where,
            )
            if streams.joined is not None:
                where, table = where.among(streams.joined.ep), None
            if table is None or not spec.tie_embeddings:
                table = vocabulary_shard(
                    f"{names.head}.weight", spec.vocab_size, spec.hidden_size, where
                )
            self.head = VocabularyHead(table, spec.vocab_size, spec.logit_cap, where)

    def make_caches(self, num_slots: int, num_rows: int, like: torch.Tensor) -> list[Cache]:
        """What each layer keeps of ``num_slots`` positions of ``num_rows`` requests."""
        return [layer.attention.make_cache(num_slots, num_rows, like) for layer in self._layers]

    def forward(
        self, batch: Batch, caches: Sequence[Cache], received: Boundary | None
    ) -> Boundary | torch.Tensor:
        """What the next stage needs; on the last stage this rank's logits [N, ceil(v/t)]."""
        rows = self.rows(batch, caches, received)
        return rows if isinstance(rows, Boundary) else self.logits(rows, batch.logit_rows)

    def rows(
        self, batch: Batch, caches: Sequence[Cache], received: Boundary | None
    ) -> Boundary | torch.Tensor:
        """What the next stage needs; on the last stage the rows [T, h] that logits are made of."""
        self.streams.state.has_prompts = batch.has_prompts
        x, residual = self._start(batch, received)
        following = [*(layer.input_norm for layer in self._layers[1:]), self.final_norm]
        for layer, norm, cache in zip(self._layers, following, caches, strict=True):
            partial, residual = layer(x, residual, batch, cache)
            if norm is None:
                hidden = layer.hand_over(partial)
                return Boundary(hidden=hidden[: len(residual)], residual=residual)
            x, residual = layer.close(partial, residual, norm, batch.num_tokens)
        return self.streams.residual.enter(x, batch.num_tokens, "head")

    def logits(self, rows: torch.Tensor, wanted: torch.Tensor | None) -> torch.Tensor:
        """Logits [N, ceil(v/t)] of the ``wanted`` [N] of the rows (None: of all)."""
        assert self.head is not None
        found: torch.Tensor = self.head(
            self.streams.to_head(rows if wanted is None else rows[wanted])
        )
        return found

    def _start(self, batch: Batch, received: Boundary | None) -> tuple[torch.Tensor, torch.Tensor]:
        first_norm = self._layers[0].input_norm
        if self.embedding is not None:
            partial = self.embedding(batch.token_ids)
            return self.streams.residual.reduce_and_norm(partial, None, first_norm, "embedding")
        assert received is not None
        return first_norm.add(received.hidden, received.residual)
