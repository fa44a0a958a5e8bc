"""Vocabulary-parallel embedding and head: each rank holds v/t rows of the vocabulary."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from weft.layers.linear import Placement
from weft.layers.matrix import linear
from weft.layers.shards import Piece, ShardedParameter, sharded_parameter


def vocabulary_shard(
    source: str, vocab_size: int, hidden_size: int, where: Placement
) -> ShardedParameter:
    """[ceil(v/t), h]: this rank's rows; rows past the end of the vocabulary are zero."""
    start, stop = where.vocab_rows(vocab_size)
    share = where.vocab_share(vocab_size)
    piece = Piece(source=source, shape=(vocab_size, hidden_size), dim=0, start=start, stop=stop)
    weight = sharded_parameter(
        (share, hidden_size), [piece], dtype=where.dtype, device=where.device
    )
    weight.data[stop - start :].zero_()
    return weight


class VocabularyEmbedding(nn.Module):
    """Token ids [T] -> [T, h], a partial sum over the group: rows of other ranks are zero.

    Rows are multiplied by ``scale``, rounded to the element type.
    """

    def __init__(
        self, weight: ShardedParameter, vocab_size: int, scale: float, where: Placement
    ) -> None:
        super().__init__()
        self.scale = torch.tensor(scale, dtype=where.dtype).item()
        self.weight = weight
        self.start, self.stop = where.vocab_rows(vocab_size)
        self.is_whole = where.tp_size == 1

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        rows = self._rows(token_ids)
        return rows if self.scale == 1 else rows * self.scale

    def _rows(self, token_ids: torch.Tensor) -> torch.Tensor:
        if self.is_whole:
            return F.embedding(token_ids, self.weight)
        foreign = (token_ids < self.start) | (token_ids >= self.stop)
        local = (token_ids - self.start).masked_fill(foreign, 0)
        return F.embedding(local, self.weight).masked_fill(foreign[:, None], 0)


class VocabularyHead(nn.Module):
    """Hidden states [N, h] -> logits [N, ceil(v/t)] of this rank's part of the vocabulary.

    Columns past the end of the vocabulary are minus infinity; with a ``cap`` c the others are
    c tanh(logits / c).
    """

    def __init__(
        self, weight: ShardedParameter, vocab_size: int, cap: float | None, where: Placement
    ) -> None:
        super().__init__()
        self.weight, self.cap = weight, cap
        self.start, stop = where.vocab_rows(vocab_size)
        self.num_real = stop - self.start

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = linear(x, self.weight)
        if self.cap is not None:
            logits = (logits / self.cap).tanh() * self.cap
        if self.num_real < logits.shape[1]:
            logits[:, self.num_real :] = float("-inf")
        return logits
