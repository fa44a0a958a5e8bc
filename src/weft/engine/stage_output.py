"""StageOutput: what one stage's part of a step leaves, handed on by value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weft.models.decoder import Boundary


@dataclass(frozen=True, kw_only=True)
class StageOutput:
    """A boundary for the next stage, or on the last one logits [N, ceil(v/t)]; else nothing.

    ids [N]: chosen already, each row's by temperature alone, in the same graph; is_booked: and
    entered where the next step finds them.
    """

    boundary: Boundary | None = None
    logits: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    is_booked: bool = False

    def first(self, count: int) -> StageOutput:
        """The first ``count`` rows."""
        boundary = self.boundary
        if boundary is not None:
            assert boundary.residual is not None
            boundary = Boundary(hidden=boundary.hidden[:count], residual=boundary.residual[:count])
        return StageOutput(
            boundary=boundary,
            logits=None if self.logits is None else self.logits[:count],
            ids=None if self.ids is None else self.ids[:count],
            is_booked=self.is_booked,
        )
