"""The dense feed-forward part: down(activation(gate(x)) * up(x)).

Shapes: T token rows, h hidden size.
"""

from __future__ import annotations

import torch
from torch import nn

from weft.layers.linear import ColumnParallelLinear, MatrixPart, Placement, RowParallelLinear
from weft.vocabulary.feed_forward_kinds import Dense


class DenseFeedForward(nn.Module):
    """Token rows [T, h] -> partial sum [T, h]."""

    def __init__(self, kind: Dense, hidden_size: int, prefix: str, where: Placement) -> None:
        super().__init__()
        self.activation = kind.activation
        sections = [
            MatrixPart(
                name=f"{prefix}.{which}_proj",
                out_features=kind.intermediate_size,
                part=where.tp_rank,
                num_parts=where.tp_size,
            )
            for which in ("gate", "up")
        ]
        self.gate_up = ColumnParallelLinear(
            hidden_size, sections, bias=kind.bias, where=where, form=kind.format
        )
        self.down = RowParallelLinear(
            f"{prefix}.down_proj",
            kind.intermediate_size,
            hidden_size,
            bias=kind.bias,
            where=where,
            form=kind.format,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        partial: torch.Tensor = self.down(self.gate_up.gated(x, self.activation))
        return partial
