"""All-reduce with a choice of algorithm for one group on CPU tensors.

At set-up the ranks of a group tell each other where they run and vote: all use weft's
programs (shared memory in a node, sockets between nodes), or all use the library's own.
The algorithm of a size is then read from a table, the same on all ranks.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.errors import UnknownAlgorithmError
from weft.allreduce.program import Topology
from weft.allreduce.selection import BACKEND, Selection, select
from weft.comm.communicator import Communicator
from weft.comm.program_runner import DTYPES, ProgramRunner
from weft.comm.recorder import RecordingTransport
from weft.comm.shared_memory import Segment, create_file, unusable_reason
from weft.comm.sockets import SocketLink
from weft.comm.transport import TorchTransport
from weft.errors import (
    CommunicationError,
    EnvironmentUnavailable,
    LostRankError,
    UserError,
    WeftError,
)
from weft.fabric.fabric import Fabric
from weft.fabric.local import local_fabric

AUTO: Final = "auto"
ALGORITHMS: Final = (AUTO, BACKEND, *PROGRAMS)

SINGLE_NODE_DEFAULT: Final = ((1024 * 1024, "one_shot"), (2**40, "two_shot"))
"""Without a measured table, on one machine: shared memory beats sockets at every size."""

DEFAULT_TIMEOUT_S: Final = 120.0

_log = logging.getLogger("weft")


class AllReducer:
    """The all-reduces of one group, as one of its ranks makes them.

    Open it on all ranks of the group at the same point (:func:`open_all_reducer`).
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        runner: ProgramRunner | None,
        selections: dict[str, Selection],
        reason: str | None,
    ) -> None:
        self._group, self._runner = group, runner
        self._selections, self.reason = selections, reason
        self._busy = threading.Lock()

    def all_reduce(self, tensor: torch.Tensor, algorithm: str = AUTO) -> torch.Tensor:
        """Sum over the group, in place, any shape and layout; returns ``tensor``.

        Bitwise equal on all ranks and from run to run. 16-bit types are added in float32
        and rounded where a value crosses between ranks. Raises UnknownAlgorithmError,
        MismatchError (on every rank), LostRankError after the time-out.
        """
        name = self.algorithm_for(tensor, algorithm)
        if not self._busy.acquire(blocking=False):
            raise CommunicationError("all_reduce: two threads use one group at once")
        try:
            if name == BACKEND:
                dist.all_reduce(tensor, group=self._group)
            else:
                self._run(tensor, name)
        finally:
            self._busy.release()
        return tensor

    def algorithm_for(self, tensor: torch.Tensor, algorithm: str = AUTO) -> str:
        """What a call with this tensor runs: a program's name, or ``backend``."""
        if algorithm not in ALGORITHMS:
            raise UnknownAlgorithmError(
                f"algorithm {algorithm!r}: unknown; choose one of {', '.join(ALGORITHMS)}"
            )
        can_run = (
            self._runner is not None and tensor.device.type == "cpu" and tensor.dtype in DTYPES
        )
        if algorithm == AUTO:
            if not can_run:
                return BACKEND
            return self._selections[_name(tensor.dtype)].pick(tensor.nbytes)
        if algorithm != BACKEND and not can_run:
            why = self.reason or f"it adds {', '.join(map(_name, DTYPES))} on the CPU alone"
            raise EnvironmentUnavailable(f"algorithm {algorithm}: not usable here: {why}")
        return algorithm

    def _run(self, tensor: torch.Tensor, name: str) -> None:
        assert self._runner is not None
        with torch.no_grad():
            if tensor.is_contiguous():
                self._runner.all_reduce(tensor.detach().view(-1), name)
            else:
                flat = tensor.detach().reshape(-1)
                self._runner.all_reduce(flat, name)
                tensor.detach().copy_(flat.view(tensor.shape))


def open_all_reducer(
    group: dist.ProcessGroup | None,
    ranks: Sequence[int],
    *,
    num_nodes: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    use_fabric: bool = True,
) -> AllReducer:
    """Set up the all-reduces of a group; every rank of the group calls it.

    ranks: the global ranks of the group, in order, for messages.
    num_nodes: treat the group as so many (virtual) nodes; found out where left out.
    use_fabric: let this machine's fabric file choose the algorithm of a size.
    Raises the error of the rank that could not read its fabric file, on all ranks.
    """
    rank = dist.get_rank(group)
    if rank < 0:
        raise UserError(f"all_reduce: this process is not in the group of ranks {list(ranks)}")
    topology, reason = _topology(
        _gather(group, len(ranks), (_host(), unusable_reason())), num_nodes
    )
    selections = _select_together(group, topology, use_fabric=use_fabric)
    if reason is None:
        runner, reason = _open_runner(group, topology, rank, ranks, timeout_s)
    if reason is not None:
        if rank == 0:
            _log.warning("all-reduce: every rank uses the library's own: %s", reason)
        return AllReducer(group, None, {}, reason)
    return AllReducer(group, runner, selections, None)


def _select_together(
    group: dist.ProcessGroup | None, topology: Topology, *, use_fabric: bool
) -> dict[str, Selection]:
    """The first rank's choices, so that all agree; the error of any rank, on all."""
    choices: dict[str, Selection] = {}
    problem = None
    try:
        fabric = _read_fabric(quiet=dist.get_rank(group) != 0) if use_fabric else None
        choices = _selections(topology, fabric)
    except WeftError as error:
        problem = error
    gathered = _gather(group, topology.ranks, (choices, problem))
    for _, failure in gathered:
        if failure is not None:
            raise failure
    first: dict[str, Selection] = gathered[0][0]
    return first


def _read_fabric(*, quiet: bool) -> Fabric | None:
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore")
        return local_fabric()


def _selections(topology: Topology, fabric: Fabric | None) -> dict[str, Selection]:
    return {
        _name(dtype): select(
            fabric,
            ranks=topology.ranks,
            nodes=topology.nodes,
            dtype=_name(dtype),
            available=(BACKEND, *PROGRAMS),
            default=SINGLE_NODE_DEFAULT if topology.nodes == 1 else (),
        )
        for dtype in DTYPES
    }


def _topology(
    places: Sequence[tuple[str, str | None]], num_nodes: int | None
) -> tuple[Topology, str | None]:
    """How the group lies on its machines, and why programs cannot be used, if so.

    places: (host, why it cannot share memory) of every rank.
    """
    size = len(places)
    hosts = [host for host, _ in places]
    if num_nodes is not None and (num_nodes < 1 or size % num_nodes):
        raise UserError(f"--nodes {num_nodes}: does not divide the {size} ranks of the group")
    nodes = num_nodes or len(set(hosts))
    if size % nodes:
        return Topology(gpus_per_node=size), "its nodes hold different numbers of ranks"
    topology = Topology(nodes=nodes, gpus_per_node=size // nodes)
    for rank in range(size):
        if any(hosts[peer] != hosts[rank] for peer in topology.node_members(rank)):
            return topology, "the ranks of a node are not neighbours in the group"
    return topology, next((reason for _, reason in places if reason), None)


def _open_runner(
    group: dist.ProcessGroup | None,
    topology: Topology,
    rank: int,
    names: Sequence[int],
    timeout_s: float,
) -> tuple[ProgramRunner | None, str | None]:
    node = topology.node_members(rank)
    path, problem = "", None
    if rank == node.start:
        try:
            path = create_file(len(node))
        except CommunicationError as error:
            problem = str(error)
    shared: list[tuple[str, str | None]] = _gather(group, topology.ranks, (path, problem))
    reason = next((text for _, text in shared if text), None)
    try:
        if reason is not None:
            return None, reason
        local = [names[member] for member in node]
        segment = Segment(shared[node.start][0], len(node), rank - node.start, local, timeout_s)
        _gather(group, topology.ranks, None)
    finally:
        if path:
            Path(path).unlink(missing_ok=True)
    link = None
    if topology.nodes > 1:
        link = SocketLink(group or _world(), rank, names, timeout_s)
    return ProgramRunner(topology, rank, segment, link), None


def _gather(group: dist.ProcessGroup | None, size: int, value: Any) -> list[Any]:
    values: list[Any] = [None] * size
    try:
        dist.all_gather_object(values, value, group=group)
    except RuntimeError as error:
        raise CommunicationError(f"all-reduce set-up failed: {error}") from error
    return values


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None
    return world


def _host() -> str:
    """The same for processes that can share memory and see each other: one boot of one machine."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    shared = Path("/dev/shm")  # noqa: S108 - the system's shared memory
    identity = boot.read_text(encoding="utf-8").strip() if boot.exists() else ""
    mount = shared.stat().st_dev if shared.exists() else 0
    processes = Path("/proc/self/ns/pid")
    namespace = processes.readlink().name if processes.is_symlink() else ""
    return f"{identity}/{mount}/{namespace}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class AlgorithmTransport(TorchTransport):
    """torch.distributed with weft's all-reduce in front of the library's own (CPU tensors)."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        ranks: tuple[int, ...],
        missing_ranks: Callable[[], tuple[int, ...]],
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        super().__init__(group, ranks, missing_ranks)
        self._timeout_s = timeout_s

    @cached_property
    def reducer(self) -> AllReducer:
        """Set up at the first call, which all ranks of the group make together."""
        return self.open()

    def open(self, *, num_nodes: int | None = None, use_fabric: bool = True) -> AllReducer:
        """A new AllReducer of this group."""
        return open_all_reducer(
            self.group,
            self._ranks,
            num_nodes=num_nodes,
            timeout_s=self._timeout_s,
            use_fabric=use_fabric,
        )

    def all_reduce(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        with self._named("all_reduce", site):
            try:
                return self.reducer.all_reduce(tensor)
            except LostRankError as error:
                raise LostRankError(f"{error}, all_reduce at {site or 'no site'}") from error


_reducers: dict[int, tuple[object, AllReducer]] = {}


def all_reduce(
    tensor: torch.Tensor,
    group: dist.ProcessGroup | Communicator | int | None = None,
    algorithm: str = AUTO,
) -> torch.Tensor:
    """Sum ``tensor`` over a group, in place, by the fastest algorithm known for its size.

    group: a communicator of weft, a process group of torch.distributed, or None for all
        ranks. algorithm: ``auto``, ``backend`` (the library's own) or a program's name.
    The first call with a process group sets it up, so all of its ranks must make it.
    Raises what :meth:`AllReducer.all_reduce` raises, and UserError outside of the group.
    """
    if isinstance(group, Communicator):
        return _through_the_door(tensor, group, algorithm)
    if isinstance(group, int):  # torch's mark for ranks that are left out of a new group
        raise UserError("all_reduce: this process is not a rank of the group that it passed")
    if group is None and not dist.is_initialized():
        raise UserError(
            "all_reduce: there is no process group yet; call "
            "torch.distributed.init_process_group first, or pass a communicator"
        )
    group = group or _world()
    if id(group) not in _reducers:
        ranks = dist.get_process_group_ranks(group)
        _reducers[id(group)] = (group, open_all_reducer(group, ranks))
    return _reducers[id(group)][1].all_reduce(tensor, algorithm)


def open_reducer_of(
    communicator: Communicator, *, num_nodes: int | None = None, use_fabric: bool = True
) -> AllReducer:
    """A further AllReducer on a communicator's group (see :func:`open_all_reducer`)."""
    return _algorithm_transport(communicator).open(num_nodes=num_nodes, use_fabric=use_fabric)


def _through_the_door(
    tensor: torch.Tensor, communicator: Communicator, algorithm: str
) -> torch.Tensor:
    if algorithm == AUTO or communicator.size == 1:
        return communicator.all_reduce(tensor)
    return _algorithm_transport(communicator).reducer.all_reduce(tensor, algorithm)


def _algorithm_transport(communicator: Communicator) -> AlgorithmTransport:
    transport = communicator.transport
    while isinstance(transport, RecordingTransport):
        transport = transport.inner
    if not isinstance(transport, AlgorithmTransport):
        raise EnvironmentUnavailable(
            "all_reduce: this group has the library's own algorithm alone; use auto, or the CPU"
        )
    return transport
