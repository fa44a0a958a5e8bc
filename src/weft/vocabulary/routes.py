"""Routes: which experts each token row takes, and how much of each.

Shapes: R token rows, k experts a row, E experts. Rows of ``ids`` name k different experts, or
``nobody`` in places that are left over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Routes:
    """ids [R, k] int64, weights [R, k] fp32; ids of ``nobody`` and above belong to no expert here.

    passages: of rows that came by an exchange, what their way back needs.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    nobody: int
    passages: torch.Tensor | None = None

    def among(self, experts: range) -> Routes:
        """The same routes as the rank with these experts sees them: numbered from its first."""
        here = (self.ids >= experts.start) & (self.ids < experts.stop)
        ids = (self.ids - experts.start).where(here, len(experts))
        return Routes(ids=ids, weights=self.weights, nobody=len(experts))

    def gates(self) -> torch.Tensor:
        """[R, E] fp32: zero where a row does not take an expert."""
        dense = self.weights.new_zeros((len(self.ids), self.nobody + 1))
        dense = dense.scatter(1, self.ids.clamp(max=self.nobody), self.weights)
        return dense[:, : self.nobody]
