"""How token rows reach the experts, and how their outputs come back.

Beside the residual stream one of the places where a layer meets communication. Shapes: R token rows of this rank, E experts of the model, e experts of
this rank, n expert-parallel ranks, h hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from weft.comm.communicator import Communicator
from weft.vocabulary.routes import Routes

Sent = tuple[str, tuple[int, int], str | None]


class ExpertExchange(Protocol):
    """Token rows to the ranks that hold their experts, partial outputs back."""

    experts: range
    """The experts of this rank."""
    adds_up: bool
    """Whether every rank of the group has all rows and their sum is made elsewhere."""

    def dispatch(self, x: torch.Tensor, routes: Routes, site: str) -> tuple[torch.Tensor, Routes]:
        """Rows [R, h] and their routes -> the rows for this rank's experts, with their routes."""

    def combine(self, partial: torch.Tensor, routes: Routes, site: str) -> torch.Tensor:
        """Outputs of this rank's experts for the dispatched rows -> sums for its own rows [R, h].

        routes: those that ``dispatch`` gave.
        """


class LocalExperts:
    """No exchange: every row is here, and the residual stream adds up what the ranks computed."""

    adds_up = True

    def __init__(self, experts: range) -> None:
        self.experts = experts

    def dispatch(
        self,
        x: torch.Tensor,
        routes: Routes,
        site: str,  # noqa: ARG002
    ) -> tuple[torch.Tensor, Routes]:
        return x, routes if len(self.experts) == routes.nobody else routes.among(self.experts)

    def combine(
        self,
        partial: torch.Tensor,
        routes: Routes,  # noqa: ARG002
        site: str,  # noqa: ARG002
    ) -> torch.Tensor:
        return partial


class SpreadExperts:
    """Each rank of a group holds as many experts, in rank order, and finishes its own rows."""

    adds_up = False

    def __init__(self, ep: Communicator, num_experts: int) -> None:
        self._ep = ep
        share = num_experts // ep.size
        self.experts = range(ep.rank * share, (ep.rank + 1) * share)


class AllToAllExperts(SpreadExperts):
    """Rows with their choices to the ranks of their experts, sums back: two calls a layer.

    There is room for all R rows of a rank at every rank: what comes depends on values, but the
    sizes of tensors on nothing but R, so that the schedule has a closed form (an upper bound),
    graphs can be captured and no row is ever dropped.
    """

    def dispatch(self, x: torch.Tensor, routes: Routes, site: str) -> tuple[torch.Tensor, Routes]:
        return self._ep.dispatch(x, routes, site)

    def combine(self, partial: torch.Tensor, routes: Routes, site: str) -> torch.Tensor:
        return self._ep.combine(partial, routes, site)


class DeepExperts(SpreadExperts):
    """DeepEP's kernels, as what one rank sends at most. A dry run's: weft does not call them.

    sends: (variant, rows, width, type or None) there and back, for so many rows.
    """

    def __init__(
        self, ep: Communicator, num_experts: int, sends: Callable[[int], tuple[Sent, ...]]
    ) -> None:
        super().__init__(ep, num_experts)
        self._sends = sends

    def dispatch(self, x: torch.Tensor, routes: Routes, site: str) -> tuple[torch.Tensor, Routes]:
        self._send(0, x, site)
        return x, routes.among(self.experts)

    def combine(
        self,
        partial: torch.Tensor,
        routes: Routes,  # noqa: ARG002
        site: str,
    ) -> torch.Tensor:
        self._send(1, partial, site)
        return partial

    def _send(self, way: int, x: torch.Tensor, site: str) -> None:
        variant, shape, dtype = self._sends(len(x))[way]
        kind = x.dtype if dtype is None else getattr(torch, dtype)
        self._ep.kernel(variant, x.new_empty(shape, dtype=kind), site)


class GatheredExperts(SpreadExperts):
    """Every rank gathers all rows with their choices; outputs are reduce-scattered (vLLM).

    A layer makes four calls: rows [n * R, h], weights and ids [n * R, k], outputs [n * R, h].
    """

    def dispatch(self, x: torch.Tensor, routes: Routes, site: str) -> tuple[torch.Tensor, Routes]:
        rows = self._ep.all_gather(x, 0, site)
        weights = self._ep.all_gather(routes.weights, 0, site)
        ids = self._ep.all_gather(routes.ids.int(), 0, site)
        every = Routes(ids=ids.long(), weights=weights, nobody=routes.nobody)
        return rows, every.among(self.experts)

    def combine(
        self,
        partial: torch.Tensor,
        routes: Routes,  # noqa: ARG002
        site: str,
    ) -> torch.Tensor:
        return self._ep.reduce_scatter(partial, site)
