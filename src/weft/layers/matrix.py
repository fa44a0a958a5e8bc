"""What a stored matrix is: its pieces of the checkpoint, its bytes and its product.

The seam for weight formats. A linear layer says which rows or columns of which checkpoint
matrices a rank holds; how they are stored and multiplied is the format's. ``Placement.stored``
decides; 8-bit floats are float8_matrix.py.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from weft.layers import fused
from weft.layers.activation import gated
from weft.layers.shards import Piece, sharded_parameter
from weft.vocabulary.feed_forward_kinds import Activation


class Matrix(nn.Module):
    """A matrix [O, I] in one element type, 16 bits or more.

    ``pieces`` say where its parts come from; rows that no piece fills are the caller's.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        pieces: list[Piece],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.values = sharded_parameter(shape, pieces, dtype=dtype, device=device)

    scales = None

    @property
    def num_bytes(self) -> int:
        """Bytes that a product reads."""
        return self.values.nbytes

    def product(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Rows x [T, I] -> [T, O], by the fastest product for the shape and device."""
        return linear(x, self.values, bias)

    def gated_product(
        self, x: torch.Tensor, bias: torch.Tensor | None, activation: Activation
    ) -> torch.Tensor:
        """Rows x [T, I] with the gate's rows above the up projection's -> act(gate) * up, [T, O / 2]."""
        return gated_linear(x, self.values, bias, activation)

    def part(self, rows: slice, columns: slice = slice(None)) -> torch.Tensor:
        """Some rows and columns, in the activations' type."""
        return self.values[rows, columns]


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """[T, I] -> [T, O], by the fastest product for the shape and device."""
    if fused.takes(x):
        from weft.layers.fused.products import product

        return product(x, weight, bias)
    return F.linear(x, weight, bias)


def gated_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation
) -> torch.Tensor:
    """[T, I] with the gate's and the up projection's rows [2 O, I] -> act(gate) * up, [T, O]."""
    if fused.takes(x) and activation == "silu" and bias is None:
        from weft.layers.fused.products import gated_product

        return gated_product(x, weight)
    gate, up = linear(x, weight, bias).chunk(2, dim=1)
    return gated(activation, gate, up)
