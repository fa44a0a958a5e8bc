"""Linear layers that hold one shard of a checkpoint's matrices. They never communicate.

Shapes: T token rows, I input features, O output features, t tensor-parallel degree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from weft.layers import fused
from weft.layers.activation import ACTIVATIONS
from weft.layers.shards import Piece, rows_of, sharded_parameter


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
class Section:
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


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[T, I] -> [T, O], by the fastest product for the shape and device."""
    if fused.takes(x):
        from weft.layers.fused.products import product

        return product(x, weight, bias)
    return F.linear(x, weight, bias)


def gated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """[T, I] with the gate's and the up projection's rows [2 O, I] -> act(gate) * up, [T, O]."""
    if fused.takes(x) and activation == "silu" and bias is None:
        from weft.layers.fused.products import gated_product

        return gated_product(x, weight)
    gate, up = linear(x, weight, bias).chunk(2, dim=1)
    return ACTIVATIONS[activation](gate) * up


class ColumnParallelLinear(nn.Module):
    """[T, I] -> [T, sum of O/t]: this rank's rows of one or several stacked matrices."""

    def __init__(
        self, in_features: int, sections: list[Section], *, bias: bool, where: Placement
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
        self.weight = sharded_parameter(
            (total, in_features), weights, dtype=where.dtype, device=where.device
        )
        self.bias = (
            sharded_parameter((total,), biases, dtype=where.dtype, device=where.device)
            if bias
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """[T, I/t] -> [T, O]: a partial sum that the caller must reduce over the group."""

    def __init__(
        self, name: str, in_features: int, out_features: int, *, bias: bool, where: Placement
    ) -> None:
        super().__init__()
        start, stop = rows_of(in_features, where.tp_rank, where.tp_size)
        shape = (out_features, in_features)
        weight = Piece(source=f"{name}.weight", shape=shape, dim=1, start=start, stop=stop)
        self.weight = sharded_parameter(
            (out_features, stop - start), [weight], dtype=where.dtype, device=where.device
        )
        self.bias = None
        if bias and where.tp_rank == 0:
            piece = Piece(source=f"{name}.bias", shape=shape[:1], dim=0, start=0, stop=out_features)
            self.bias = sharded_parameter(
                (out_features,), [piece], dtype=where.dtype, device=where.device
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)
