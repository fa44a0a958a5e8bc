"""Which part of a checkpoint tensor a parameter holds.

A parameter carries a list of pieces; loaders (a checkpoint, dummy weights) fill
them without knowing anything of layers or layouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Piece:
    """``source[start:stop]`` along ``dim`` goes to rows (or columns) ``at`` onward of the parameter.

    ``shape`` is that of the whole source tensor, for checks and for dummy weights. index: the
    source is a stack of matrices stored transposed, of which this is one (or of vectors), and
    of its rows every ``step``-th from ``first`` on is meant.
    """

    source: str
    shape: tuple[int, ...]
    dim: int
    start: int
    stop: int
    at: int = 0
    index: int | None = None
    first: int = 0
    step: int = 1

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """Of the matrix or vector that ``start`` and ``stop`` count in."""
        if self.index is None:
            return self.shape
        *columns, rows = self.shape[1:]
        return (rows // self.step, *columns)

    def read_from(self, source: Any) -> torch.Tensor:
        """The piece of a tensor, or of what a file gives slices of."""
        cut = (slice(None),) * self.dim + (slice(self.start, self.stop),)
        if self.index is None:
            found: torch.Tensor = source[cut]
            return found
        matrix: torch.Tensor = source[self.index]
        return (matrix.t() if matrix.dim() == 2 else matrix)[self.first :: self.step][cut]


class ShardedParameter(nn.Parameter):
    """A parameter that knows its pieces of the checkpoint."""

    pieces: tuple[Piece, ...]


class ScaledParameter(ShardedParameter):
    """Values [O, I] in 8 bits with ``scales`` [G, O] fp32: of G equal groups of each row."""

    scales: ShardedParameter
    group: int

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int],
        pieces: list[Piece],
        group: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> ScaledParameter:
        """An uninitialised one, which is filled with its scales from ``pieces``."""
        values = cls(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
        values.pieces, values.group = tuple(pieces), group
        values.scales = sharded_parameter(
            (shape[1] // group, shape[0]), [], dtype=torch.float32, device=device
        )
        return values

    def place(self, piece: Piece, values: torch.Tensor, scales: torch.Tensor) -> None:
        """Fill a piece: its values [rows, columns] and their scales [groups, rows]."""
        self.data.narrow(piece.dim, piece.at, piece.stop - piece.start).copy_(values)
        if piece.dim == 0:
            self.scales.data[:, piece.at : piece.at + len(values)] = scales
        else:
            first = piece.at // self.group
            self.scales.data[first : first + len(scales)] = scales


def sharded_parameter(
    shape: tuple[int, ...],
    pieces: list[Piece],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> ShardedParameter:
    """An uninitialised parameter of ``shape`` that is to be filled from ``pieces``."""
    parameter = ShardedParameter(
        torch.empty(shape, dtype=dtype, device=device), requires_grad=False
    )
    parameter.pieces = tuple(pieces)
    return parameter


def rows_of(total: int, rank: int, size: int) -> tuple[int, int]:
    """First and last+1 index of this rank's equal share, the last shares cut at ``total``."""
    share = -(-total // size)
    return min(rank * share, total), min((rank + 1) * share, total)
