"""The draft layer: one decoder layer that guesses the token after next from hidden states.

The next token's embedding and the model's hidden state of the row, each normalised, side by side
through a projection into a layer of the model's own kinds (DeepSeek-V3, arXiv:2412.19437, section
2.2; EAGLE, arXiv:2401.15077, with a dense layer). Embedding and head are like the model's.

Shapes: T token rows, N sequences, h hidden size.
"""

from __future__ import annotations

import torch
from torch import nn

from weft.layers.attention import Cache
from weft.layers.embedding import VocabularyEmbedding, VocabularyHead, vocabulary_shard
from weft.layers.linear import ColumnParallelLinear, MatrixPart, Placement
from weft.layers.norm import rms_norm
from weft.models.decoder import Batch, DecoderLayer, Streams
from weft.vocabulary.model_spec import ModelSpec


class DraftLayer(nn.Module):
    """``spec``: a model of one layer (``Speculation.layer_of``)."""

    def __init__(self, spec: ModelSpec, streams: Streams, where: Placement) -> None:
        super().__init__()
        hidden, vocab_size = spec.hidden_size, spec.vocab_size
        self._streams, self._stream = streams, streams.residual
        self.embedding_norm, self.hidden_norm, self.final_norm = (
            rms_norm(f"draft.{name}", hidden, spec.norm_eps, spec.norm_weight_offset, where)
            for name in ("enorm", "hnorm", "norm")
        )
        joined = MatrixPart(name="draft.eh_proj", out_features=hidden, part=0, num_parts=1)
        self.projection = ColumnParallelLinear(2 * hidden, [joined], bias=False, where=where)
        self.layer = DecoderLayer(spec, 0, streams, where)
        over = where if streams.joined is None else where.among(streams.joined.ep)
        table = vocabulary_shard("draft.embedding", vocab_size, hidden, where)
        head = vocabulary_shard("draft.head", vocab_size, hidden, over)
        self.embedding = VocabularyEmbedding(table, vocab_size, spec.embedding_scale, where)
        self.head = VocabularyHead(head, vocab_size, spec.logit_cap, over)

    def forward(self, batch: Batch, hidden: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Next tokens and hidden states [T, h] -> this rank's logits [N, ceil(v/t)]."""
        self._streams.state.has_prompts = batch.has_prompts
        embedded = self._stream.reduce(self.embedding(batch.token_ids), "draft.embedding")
        both = torch.cat((self.embedding_norm(embedded), self.hidden_norm(hidden)), dim=1)
        x = self.projection(both)
        partial, residual = self.layer(self.layer.input_norm(x), x, batch, cache)
        rows, _ = self.layer.close(partial, residual, self.final_norm, batch.num_tokens)
        wanted = rows if batch.logit_rows is None else rows[batch.logit_rows]
        logits: torch.Tensor = self.head(self._streams.to_head(wanted))
        return logits
