"""Linear layers that hold one shard of a checkpoint's matrices. They never communicate.

Shapes: T token rows, I input features, O output features, t tensor-parallel degree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from weft.comm.communicator import Communicator
from weft.layers.float8_matrix import Float8Matrix, group_of
from weft.layers.matrix import Matrix
from weft.layers.shards import Piece, ShardedParameter, rows_of, sharded_parameter
from weft.vocabulary.feed_forward_kinds import Activation
from weft.vocabulary.weight_formats import PLAIN, WeightFormat


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a layer lives: its share of the tensor-parallel group, element type and device.

    The vocabulary is padded to a multiple of ``vocab_multiple`` before it is split.
    """

    tp_rank: int
    tp_size: int
    dtype: torch.dtype
    device: torch.device
    vocab_multiple: int = 1

    @property
    def alone(self) -> Placement:
        """The same place outside the group: whole matrices."""
        return replace(self, tp_rank=0, tp_size=1)

    def among(self, group: Communicator) -> Placement:
        """The same place in a wider group."""
        return replace(self, tp_rank=group.rank, tp_size=group.size)

    def stored(
        self, shape: tuple[int, int], pieces: list[Piece], form: WeightFormat = PLAIN
    ) -> Matrix | Float8Matrix:
        """A matrix [O, I], as a checkpoint in ``form`` is held."""
        group = group_of(form, shape, pieces)
        if group is not None:
            return Float8Matrix(shape, pieces, group, dtype=self.dtype, device=self.device)
        return Matrix(shape, pieces, dtype=self.dtype, device=self.device)

    def parameter(self, shape: tuple[int, ...], pieces: list[Piece]) -> ShardedParameter:
        """Anything that is not a matrix."""
        return sharded_parameter(shape, pieces, dtype=self.dtype, device=self.device)

    def vocab_share(self, vocab_size: int) -> int:
        """Rows of the vocabulary that each rank holds, padding included."""
        padded = -(-vocab_size // self.vocab_multiple) * self.vocab_multiple
        return -(-padded // self.tp_size)

    def vocab_rows(self, vocab_size: int) -> tuple[int, int]:
        """First and last+1 token id of this rank."""
        share = self.vocab_share(vocab_size)
        start = min(self.tp_rank * share, vocab_size)
        return start, min(start + share, vocab_size)


@dataclass(frozen=True, kw_only=True)
class MatrixPart:
    """One checkpoint matrix [O, I] inside a column-parallel layer.

    ``part`` of ``num_parts`` equal row blocks is held; KV heads that are fewer than
    the ranks are replicated by giving several ranks the same part.
    """

    name: str
    out_features: int
    part: int
    num_parts: int

    @property
    def rows(self) -> tuple[int, int]:
        return rows_of(self.out_features, self.part, self.num_parts)


class ColumnParallelLinear(nn.Module):
    """[T, I] -> [T, sum of O/t]: this rank's rows of one or several stacked matrices."""

    def __init__(
        self,
        in_features: int,
        sections: list[MatrixPart],
        *,
        bias: bool,
        where: Placement,
        form: WeightFormat = PLAIN,
    ) -> None:
        super().__init__()
        self.split_sizes = [stop - start for start, stop in (s.rows for s in sections)]
        total = sum(self.split_sizes)
        weights, biases, at = [], [], 0
        for section in sections:
            start, stop = section.rows
            shape = (section.out_features, in_features)
            place = {"dim": 0, "start": start, "stop": stop, "at": at}
            weights.append(Piece(source=f"{section.name}.weight", shape=shape, **place))
            biases.append(Piece(source=f"{section.name}.bias", shape=shape[:1], **place))
            at += stop - start
        self.matrix = where.stored((total, in_features), weights, form)
        self.bias = where.parameter((total,), biases) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.matrix.product(x, self.bias)

    def gated(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        """For a gate's and an up projection's rows: act(gate) * up, [T, O/t]."""
        return self.matrix.gated_product(x, self.bias, activation)


class RowParallelLinear(nn.Module):
    """[T, I/t] -> [T, O]: a partial sum that the caller must reduce over the group."""

    def __init__(
        self,
        name: str,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        where: Placement,
        form: WeightFormat = PLAIN,
    ) -> None:
        super().__init__()
        start, stop = rows_of(in_features, where.tp_rank, where.tp_size)
        shape = (out_features, in_features)
        weight = Piece(source=f"{name}.weight", shape=shape, dim=1, start=start, stop=stop)
        self.matrix = where.stored((out_features, stop - start), [weight], form)
        self.bias = None
        if bias and where.tp_rank == 0:
            piece = Piece(source=f"{name}.bias", shape=shape[:1], dim=0, start=0, stop=out_features)
            self.bias = where.parameter((out_features,), [piece])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.matrix.product(x, self.bias)
