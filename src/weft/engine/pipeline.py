"""What crosses a pipeline boundary, and how (see vocabulary/conventions.py)."""

from __future__ import annotations

import torch

from weft.comm.groups import ProcessGroups
from weft.models.decoder import Boundary
from weft.vocabulary.conventions import Conventions


class StageLink:
    """The links of one rank to the previous and the next pipeline stage.

    Under sequence parallelism a rank's rows are already its share and travel as they
    are. Otherwise, where the engine slices, each tensor-parallel rank sends h/t
    columns and the receiving group puts them together again.
    """

    def __init__(self, groups: ProcessGroups, conventions: Conventions, hidden_size: int) -> None:
        self._pp, self._tp = groups.pp, groups.tp
        self._num_tensors = conventions.boundary_tensors
        self._sliced = conventions.boundary_sliced and groups.tp.size > 1 and groups.layout.sp == 1
        self._hidden_size = hidden_size

    def send(self, boundary: Boundary) -> None:
        """To the next stage."""
        assert boundary.residual is not None
        tensors = [boundary.hidden, boundary.residual]
        if self._num_tensors == 1:
            tensors = [boundary.hidden + boundary.residual]
        for tensor in tensors:
            self._pp.send(self._slice(tensor), self._pp.rank + 1, "boundary")

    def receive(self, num_rows: int, like: torch.Tensor) -> Boundary:
        """From the previous stage: ``num_rows`` stream rows of the type and device of ``like``."""
        tensors = [self._receive_one(num_rows, like) for _ in range(self._num_tensors)]
        return Boundary(hidden=tensors[0], residual=tensors[1] if len(tensors) > 1 else None)

    def _slice(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(self._tp.size, dim=1)[self._tp.rank] if self._sliced else tensor

    def _receive_one(self, num_rows: int, like: torch.Tensor) -> torch.Tensor:
        width = self._hidden_size // (self._tp.size if self._sliced else 1)
        part = self._pp.recv(like.new_empty((num_rows, width)), self._pp.rank - 1, "boundary")
        return self._tp.all_gather(part, 1, "boundary") if self._sliced else part
