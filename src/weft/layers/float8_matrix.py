"""Matrices in 8-bit floats: bytes and scales in memory, 16-bit (or wider) products.

Few rows are multiplied by kernels that scale what they read; many rows by the library, after the
matrix is brought into the activations' type. Activations are never rounded to 8 bits, so a row's
result is that of the dequantised matrix whatever the batch.

Shapes: matrix [O, I], scales [G, O] fp32 of G equal groups of each row.
"""

from __future__ import annotations

from functools import cached_property
from math import gcd
from typing import Final

import torch
from torch import nn
from torch.nn import functional as F

from weft.layers import fused
from weft.layers.activation import gated
from weft.layers.shards import Piece, ScaledParameter
from weft.vocabulary.feed_forward_kinds import Activation
from weft.vocabulary.weight_formats import WeightFormat

FLOAT8: Final = torch.float8_e4m3fn
_MOST: Final = torch.finfo(FLOAT8).max


class Float8Matrix(nn.Module):
    """A matrix of the members of ``Matrix``; ``group`` columns of a row share a scale."""

    def __init__(
        self,
        shape: tuple[int, int],
        pieces: list[Piece],
        group: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.values = ScaledParameter.empty(shape, pieces, group, dtype=FLOAT8, device=device)
        self.scales, self._group, self._dtype = self.values.scales, group, dtype

    @property
    def num_bytes(self) -> int:
        """Bytes that a product reads."""
        return self.values.nbytes + self.scales.nbytes

    def product(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Rows x [T, I] -> [T, O]."""
        if fused.takes(x):
            from weft.layers.fused.products import product

            return product(x, self.values, bias, self.scales)
        return F.linear(x, self.part(slice(None)), bias)

    def gated_product(
        self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        """Rows x [T, I] with the gate's rows above the up projection's -> act(gate) * up, [T, O / 2]."""
        if fused.takes(x) and activation == "silu" and bias is None:
            from weft.layers.fused.products import gated_product

            return gated_product(x, self.values, self.scales)
        return gated(activation, *self.product(x, bias).chunk(2, dim=1))

    def part(self, rows: slice, columns: slice = slice(None)) -> torch.Tensor:
        """Some rows and columns (of whole groups), in the activations' type.

        A CPU, whose products are slow beside this, does it once and keeps the result.
        """
        if self.values.device.type == "cpu":
            return self._on_cpu[rows, columns]
        start, stop, _ = columns.indices(self.values.shape[1])
        values = self.values[rows, columns]
        scales = self.scales[start // self._group : stop // self._group, rows]
        return dequantised(values, scales, self._dtype)

    @cached_property
    def _on_cpu(self) -> torch.Tensor:
        return dequantised(self.values, self.scales, self._dtype)


def dequantised(values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values [O, I] times their scales [G, O], in ``dtype``."""
    if values.is_cuda and fused.installed():
        from weft.layers.fused.float8 import dequantised as in_one_kernel

        return in_one_kernel(values, scales, dtype)
    groups = values.float().unflatten(1, (len(scales), -1))
    scaled: torch.Tensor = (groups * scales.t()[:, :, None]).flatten(1)
    return scaled.to(dtype)


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [O, I] -> its values in 8 bits and a scale a row, [1, O]: the largest becomes 448."""
    wide = weight.float()
    scales = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / _MOST
    return (wide / scales[:, None]).clamp(-_MOST, _MOST).to(FLOAT8), scales[None]


def group_of(form: WeightFormat, shape: tuple[int, int], pieces: list[Piece]) -> int | None:
    """How many columns share a scale in a rank's part of a matrix; None: it is held in 16 bits.

    A shard that begins inside a block of the checkpoint has smaller groups than that.
    """
    if not form.is_held:
        return None
    edges = [piece.at for piece in pieces if piece.dim == 1]
    if form.columns:
        edges += [form.columns, *(piece.start for piece in pieces if piece.dim == 1)]
    return gcd(shape[1], *edges)
