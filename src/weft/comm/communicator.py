"""Communicator: the one door for bytes between the ranks of a group."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weft.allreduce.selection import AUTO
from weft.comm.transport import TorchTransport
from weft.kernels.reducer import AddNorm, add_rms_norm
from weft.vocabulary.layout import GroupKind
from weft.vocabulary.routes import Routes


@dataclass(kw_only=True)
class Communicator:
    """One group of ranks, as one of its members sees it.

    ``ranks`` are global, ``rank`` is this process's place among them. In a group of
    one every operation returns its input untouched, so callers need no special case.
    A recorder may stand in front of ``transport`` between steps.
    """

    kind: GroupKind
    ranks: tuple[int, ...]
    rank: int
    transport: TorchTransport

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1

    def all_reduce(
        self,
        tensor: torch.Tensor,
        site: str = "",
        *,
        out: torch.Tensor | None = None,
        algorithm: str = AUTO,
    ) -> torch.Tensor:
        """Sum over the group into ``out`` (default: in place), any shape; returns it."""
        if self.size == 1:
            return tensor if out is None else out.copy_(tensor)
        return self.transport.all_reduce(tensor, out, algorithm=algorithm, site=site)

    def all_reduce_residual_rms_norm(
        self,
        tensor: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        site: str = "",
        *,
        add_norm: AddNorm = add_rms_norm,
    ) -> torch.Tensor:
        """``residual`` += sum over the group of ``tensor``; returns its weighted RMSNorm.

        All [..., hidden], ``weight`` [hidden]; ``tensor`` may be overwritten. add_norm: does it
        where the sum and the norm are no single kernel.
        """
        if self.size == 1:
            return add_norm(tensor, residual, weight, epsilon)
        return self.transport.all_reduce_residual_rms_norm(
            tensor, residual, weight, epsilon, site=site, add_norm=add_norm
        )

    def all_gather(self, tensor: torch.Tensor, dim: int = 0, site: str = "") -> torch.Tensor:
        """Concatenate along ``dim`` in rank order: [.., n, ..] -> [.., size * n, ..]."""
        return tensor if self.size == 1 else self.transport.all_gather(tensor, dim, site)

    def reduce_scatter(self, tensor: torch.Tensor, site: str = "") -> torch.Tensor:
        """Sum over the group, keep this rank's rows: [size * n, ..] -> [n, ..]."""
        return tensor if self.size == 1 else self.transport.reduce_scatter(tensor, site)

    def gather(self, tensor: torch.Tensor, dst: int = 0, site: str = "") -> torch.Tensor | None:
        """Concatenate along the last dimension on rank ``dst`` of the group; None elsewhere."""
        return tensor if self.size == 1 else self.transport.gather(tensor, dst, site)

    def broadcast(self, tensor: torch.Tensor, src: int, site: str = "") -> torch.Tensor:
        """Overwrite ``tensor`` with that of rank ``src`` of the group."""
        return tensor if self.size == 1 else self.transport.broadcast(tensor, src, site)

    def send(self, tensor: torch.Tensor, dst: int, site: str = "") -> None:
        """Send to rank ``dst`` of the group."""
        self.transport.send(tensor, dst, site)

    def recv(self, tensor: torch.Tensor, src: int, site: str = "") -> torch.Tensor:
        """Overwrite ``tensor`` with what rank ``src`` of the group sends."""
        return self.transport.recv(tensor, src, site)

    def dispatch(
        self, rows: torch.Tensor, routes: Routes, site: str = ""
    ) -> tuple[torch.Tensor, Routes]:
        """Token rows to the ranks that hold their experts (``Reducer.dispatch``)."""
        assert routes.nobody % self.size == 0, "every rank holds as many experts"
        return self.transport.dispatch(rows, routes, site=site)

    def combine(self, partial: torch.Tensor, routes: Routes, site: str = "") -> torch.Tensor:
        """Their partial sums back, added up (``Reducer.combine``)."""
        return self.transport.combine(partial, routes, site=site)

    def kernel(self, name: str, tensor: torch.Tensor, site: str = "") -> torch.Tensor:
        """A library's own operation (``deepep_dispatch``) that sends at most ``tensor``: a dry run's."""
        result: torch.Tensor = getattr(self.transport, name)(tensor, site)
        return result
