"""Reducer: the all-reduces of one group, as one of its ranks makes them, and its exchange of rows.

The class itself is the library's own (nccl, gloo); weft's kernels on GPUs
(weft.kernels.communicator) and programs on CPUs (weft.comm.program_reducer) take its place
where they can be used.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch.nn import functional as F

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.errors import UnknownAlgorithmError
from weft.allreduce.selection import AUTO, BACKEND, LIBRARY, Selection, canonical, select
from weft.errors import CommunicationError, EnvironmentUnavailable, LostRankError, UserError
from weft.fabric.fabric import Fabric
from weft.kernels import exchange
from weft.kernels.selection import BETWEEN_NODES, FLAT
from weft.kernels.vote import together
from weft.vocabulary.routes import Routes

ALGORITHMS: Final = tuple(
    dict.fromkeys((AUTO, LIBRARY, *PROGRAMS, *FLAT, *itertools.chain(*BETWEEN_NODES.values())))
)
"""Every name that some group can run."""

AddNorm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(hidden, residual, weight, epsilon): residual += hidden, in place; its weighted RMSNorm."""


def add_rms_norm(
    hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The plain AddNorm, by torch."""
    return F.rms_norm(residual.add_(hidden), weight.shape, weight, epsilon)


@dataclass(frozen=True, kw_only=True)
class Peers:
    """The global ranks of a group and who of them is gone, for the errors of its calls."""

    ranks: tuple[int, ...]
    missing: Callable[[], tuple[int, ...]] = tuple

    @contextmanager
    def named(self, op: str, site: str) -> Iterator[None]:
        """RuntimeErrors inside name the operation, its caller and the ranks that are gone."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            where = f"{op} at {site or 'no site'} among ranks {','.join(map(str, self.ranks))}"
            missing = self.missing()
            if missing:
                names = ", ".join(map(str, missing))
                raise LostRankError(f"lost rank {names} during {where}") from error
            raise CommunicationError(f"{where}: {reason}") from error


class Reducer:
    """All-reduce by the library's own, and the fused operation composed of it.

    reason: why weft's own are not used, if somebody asked. One thread at a time.
    """

    name: Literal["library", "weft"] = "library"

    def __init__(
        self, group: dist.ProcessGroup, peers: Peers | None = None, *, reason: str | None = None
    ) -> None:
        self.group, self.reason = group, reason
        self.rank, self.num_ranks = dist.get_rank(group), dist.get_world_size(group)
        self.peers = peers or Peers(ranks=tuple(dist.get_process_group_ranks(group)))
        self.busy = threading.Lock()
        self.handle = next(_handles)
        self._open = True
        _reducers[self.handle] = self

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What can be asked for by name, but for ``auto`` and the library's own."""
        return ()

    def takes(self, tensor: torch.Tensor) -> bool:  # noqa: ARG002
        """Whether weft reduces this tensor; ``auto`` leaves the others to the library."""
        return False

    def all_reduce(
        self,
        tensor: torch.Tensor,
        out: torch.Tensor | None = None,
        *,
        algorithm: str = AUTO,
        site: str = "",
    ) -> torch.Tensor:
        """Sum ``tensor`` over the group into ``out`` (default: in place); returns it.

        algorithm: ``auto``, ``library`` (the library's own) or one of ``algorithms``.
        site: the caller, for errors. Raises UserError, UnknownAlgorithmError,
        EnvironmentUnavailable for a known algorithm that cannot be used here, and
        CommunicationError (LostRankError) where ranks do not come.
        """
        if algorithm != AUTO:
            self.check_name(algorithm)
        return self.by_library(tensor, out, site)

    def all_reduce_residual_rms_norm(
        self,
        tensor: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        out: torch.Tensor | None = None,
        residual_out: torch.Tensor | None = None,
        *,
        site: str = "",
        add_norm: AddNorm = add_rms_norm,
    ) -> torch.Tensor:
        """``residual_out = residual + all_reduce(tensor)``; returns its ``weight * rms_norm``.

        tensor, residual, out, residual_out: [..., hidden]; weight: [hidden]. Without
        ``residual_out`` the residual itself changes; without ``out`` the result is a new tensor
        and ``tensor`` may be overwritten. add_norm: adds and normalises where the sum and the
        norm are no single kernel. Raises what ``all_reduce`` raises.
        """
        check_norm_shapes(tensor, residual, weight, out, residual_out)
        total = self.all_reduce(tensor, out, site=site)
        if residual_out is not None:
            residual = residual_out.copy_(residual)
        normed = add_norm(total, residual, weight, epsilon)
        return normed if out is None else out.copy_(normed)

    def dispatch(
        self, rows: torch.Tensor, routes: Routes, *, site: str = ""
    ) -> tuple[torch.Tensor, Routes]:
        """Rows [R, h] to the ranks that hold their experts; all ranks bring as many.

        Of the ``routes.nobody`` experts each rank holds an equal part, in rank order. Returns rows
        [n R, h] in rank order with their routes among this rank's experts; rows that take none of
        them hold no meaning.
        """
        self.require_open()
        return exchange.dispatch(self, rows, routes, site)

    def combine(self, partial: torch.Tensor, routes: Routes, *, site: str = "") -> torch.Tensor:
        """Partial sums [n R, h] for the dispatched rows -> the sums of our own [R, h].

        Added in rank order in fp32 and rounded once. routes: what the dispatch gave.
        """
        assert routes.passages is None, "the dispatch was the library's too"
        self.require_open()
        return exchange.combine(self, partial, site)

    def by_library(
        self, tensor: torch.Tensor, out: torch.Tensor | None, site: str = ""
    ) -> torch.Tensor:
        """The library's own all-reduce of any tensor that it takes."""
        self.require_open()
        out = tensor if out is None else out
        if out is not tensor:
            check_out(tensor, out)
            out.copy_(tensor)
        with self.peers.named("all_reduce", site):
            dist.all_reduce(out, group=self.group)
        return out

    def check_name(self, algorithm: str) -> str:
        """The canonical name of an algorithm that can be asked for here."""
        name = canonical(algorithm)
        if name not in (BACKEND, *ALGORITHMS):
            raise UnknownAlgorithmError(
                f"algorithm {algorithm!r}: unknown; choose one of {', '.join(ALGORITHMS)}"
            )
        if name not in (AUTO, BACKEND, *self.algorithms):
            why = self.reason or f"this group has {', '.join((AUTO, LIBRARY, *self.algorithms))}"
            raise EnvironmentUnavailable(f"algorithm {algorithm}: not usable here: {why}")
        return name

    def require_open(self) -> None:
        """UserError after ``close``."""
        if not self._open:
            raise UserError("all_reduce: this group's all-reduce is closed; open a new one")

    def check(self) -> None:
        """Raise LostRankError if a call that has run so far gave up on a rank."""

    def fail(self) -> None:
        """Let the calls of all ranks fail, as far as this kind can tell them."""

    def close(self, *, lost: bool = False) -> None:  # noqa: ARG002
        """Give back what belongs to the group; collective, unless ``lost``.

        The second call does nothing.
        """
        self._open = False
        _reducers.pop(self.handle, None)


def find(handle: int) -> Reducer:
    """The open reducer of a handle (what the torch operators carry)."""
    reducer = _reducers.get(handle)
    if reducer is None:
        raise UserError(f"all-reduce communicator {handle} is closed or was never opened")
    return reducer


def agreed_selections(
    group: dist.ProcessGroup,
    fabric: Callable[[], Fabric | None],
    dtypes: Sequence[torch.dtype],
    *,
    nodes: int,
    algorithms: Sequence[str],
    default: Sequence[tuple[int, str]],
) -> dict[torch.dtype, Selection]:
    """The first rank's choices by element type, so that all agree; collective.

    fabric: reads this machine's measurements; its error on any rank is raised on all.
    """

    def selections() -> dict[torch.dtype, Selection]:
        with warnings.catch_warnings():
            if dist.get_rank(group):
                warnings.simplefilter("ignore")
            measured = fabric()
        return {
            dtype: select(
                measured,
                ranks=dist.get_world_size(group),
                nodes=nodes,
                dtype=str(dtype).removeprefix("torch."),
                available=(BACKEND, *algorithms),
                default=default,
            )
            for dtype in dtypes
        }

    return together(group, selections)[0]


def check_out(tensor: torch.Tensor, out: torch.Tensor) -> None:
    """UserError unless the sum of ``tensor`` can go to ``out``."""
    if (out.shape, out.dtype, out.device) != (tensor.shape, tensor.dtype, tensor.device):
        raise UserError(
            f"out is {out.dtype} {list(out.shape)} on {out.device}, not like the tensor: "
            f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        )


def check_norm_shapes(
    tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor | None,
    residual_out: torch.Tensor | None,
) -> None:
    """UserError unless all are [..., hidden] of one type, and the weight [hidden]."""
    for name, other, expected in (
        ("residual", residual, tensor.shape),
        ("weight", weight, tensor.shape[-1:]),
        ("out", out, tensor.shape),
        ("residual_out", residual_out, tensor.shape),
    ):
        if other is not None and (other.shape != expected or other.dtype != tensor.dtype):
            found = f"{other.dtype} {list(other.shape)}"
            raise UserError(f"{name} is {found}, expected {tensor.dtype} {list(expected)}")


_handles = itertools.count(1)
_reducers: WeakValueDictionary[int, Reducer] = WeakValueDictionary()
