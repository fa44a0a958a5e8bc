"""Which part of a checkpoint tensor a parameter holds.

A parameter carries a list of pieces; loaders (a checkpoint, dummy weights) fill
them without knowing anything of layers or layouts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Piece:
    """``source[start:stop]`` along ``dim`` goes to rows (or columns) ``at`` onward of the parameter.

    ``shape`` is that of the whole source tensor, for checks and for dummy weights.
    """

    source: str
    shape: tuple[int, ...]
    dim: int
    start: int
    stop: int
    at: int = 0


class ShardedParameter(nn.Parameter):
    """A parameter that knows its pieces of the checkpoint."""

    pieces: tuple[Piece, ...]


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
