"""Weft's all-reduce programs for a group on CPU tensors.

At set-up the ranks tell each other where they run and vote: all use the programs (shared
memory in a node, sockets between nodes), or none does. The algorithm of a size is then read
from a table, the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import torch
import torch.distributed as dist

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.program import Topology
from weft.allreduce.selection import AUTO, BACKEND
from weft.comm.program_runner import DTYPES, ProgramRunner
from weft.comm.shared_memory import Segment, create_file, unusable_reason
from weft.comm.sockets import SocketLink
from weft.errors import CommunicationError, EnvironmentUnavailable, LostRankError, UserError
from weft.fabric.local import local_fabric
from weft.kernels.reducer import Peers, Reducer, agreed_selections, check_out
from weft.kernels.vote import TIMEOUT_S, agree, gather

SINGLE_NODE_DEFAULT: Final = ((1024 * 1024, "one_shot"), (2**40, "two_shot"))
"""Without a measured table, on one machine: shared memory beats sockets at every size."""

_KNOWN: Final = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)


class ProgramReducer(Reducer):
    """Sums bitwise equal on all ranks and from run to run.

    16-bit types are added in float32 and rounded where a value crosses between ranks.
    """

    name: Literal["library", "weft"] = "weft"

    def __init__(
        self,
        group: dist.ProcessGroup,
        peers: Peers | None = None,
        *,
        num_nodes: int | None = None,
        timeout_s: float = TIMEOUT_S,
        use_fabric: bool = True,
    ) -> None:
        """Collective over ``group``.

        num_nodes: treat the group as so many (virtual) nodes; found out where left out.
        use_fabric: let this machine's fabric file choose the algorithm of a size.
        Raises EnvironmentUnavailable on every rank where programs cannot be used, and the
        error of the rank that could not read its fabric file.
        """
        super().__init__(group, peers)
        topology, reason = topology_of(gather(group, (_host(), unusable_reason())), num_nodes)
        if reason is not None:
            raise EnvironmentUnavailable(f"weft's CPU all-reduce: {reason}")
        self._selections = agreed_selections(
            group,
            local_fabric if use_fabric else lambda: None,
            DTYPES,
            nodes=topology.nodes,
            algorithms=self.algorithms,
            default=SINGLE_NODE_DEFAULT if topology.nodes == 1 else (),
        )
        self._segment = self._open_segment(topology, timeout_s)
        link = None
        if topology.nodes > 1:
            link = SocketLink(group, self.rank, self.peers.ranks, timeout_s)
        self._runner = ProgramRunner(topology, self.rank, self._segment, link)

    @property
    def algorithms(self) -> tuple[str, ...]:
        """See Reducer."""
        return tuple(PROGRAMS)

    def takes(self, tensor: torch.Tensor) -> bool:
        """See Reducer."""
        return self.algorithm_for(tensor) != BACKEND

    def all_reduce(
        self,
        tensor: torch.Tensor,
        out: torch.Tensor | None = None,
        *,
        algorithm: str = AUTO,
        site: str = "",
    ) -> torch.Tensor:
        """See Reducer; also MismatchError on every rank where they pass different tensors."""
        name = self.algorithm_for(tensor, algorithm)
        if name == BACKEND:
            return self.by_library(tensor, out, site)
        self.require_open()
        out = tensor if out is None else out
        if out is not tensor:
            check_out(tensor, out)
            out.copy_(tensor)
        try:
            self._run(out, name)
        except LostRankError as error:
            raise LostRankError(f"{error}, all_reduce at {site or 'no site'}") from error
        return out

    def algorithm_for(self, tensor: torch.Tensor, algorithm: str = AUTO) -> str:
        """What a call with this tensor runs: a program's name, or ``backend``."""
        if tensor.device.type != "cpu":
            raise UserError(f"the tensor is on {tensor.device}, the group's are on cpu")
        found = self._selections.get(tensor.dtype)
        if algorithm == AUTO:
            return BACKEND if found is None else found.pick(tensor.nbytes)
        name = self.check_name(algorithm)
        if found is None and name != BACKEND:
            raise EnvironmentUnavailable(
                f"algorithm {algorithm}: not usable here: it adds {_KNOWN}"
            )
        return name

    def fail(self) -> None:
        """See Reducer."""
        self._segment.give_up()

    def close(self, *, lost: bool = False) -> None:
        """See Reducer."""
        if self._open:
            super().close(lost=lost)
            del self._runner
            self._segment.close()

    def _run(self, tensor: torch.Tensor, name: str) -> None:
        with torch.no_grad():
            if tensor.is_contiguous():
                self._runner.all_reduce(tensor.detach().view(-1), name)
            else:
                flat = tensor.detach().reshape(-1)
                self._runner.all_reduce(flat, name)
                tensor.detach().copy_(flat.view(tensor.shape))

    def _open_segment(self, topology: Topology, timeout_s: float) -> Segment:
        """The memory of this rank's node, which its first rank makes."""
        node = topology.node_members(self.rank)
        path, problem = "", None
        if self.rank == node.start:
            try:
                path = create_file(len(node))
            except CommunicationError as error:
                problem = str(error)
        try:
            shared = agree(self.group, path, problem)[node.start]
            local = [self.peers.ranks[member] for member in node]
            segment = Segment(shared, len(node), self.rank - node.start, local, timeout_s)
            gather(self.group, None)
        finally:
            if path:
                Path(path).unlink(missing_ok=True)
        return segment


def topology_of(
    places: Sequence[tuple[str, str | None]], num_nodes: int | None
) -> tuple[Topology, str | None]:
    """How the group lies on its machines, and why programs cannot be used, if so.

    places: (host, why it cannot share memory) of every rank.
    """
    size = len(places)
    hosts = [host for host, _ in places]
    if num_nodes is not None and (num_nodes < 1 or size % num_nodes):
        raise UserError(f"`nodes` {num_nodes}: does not divide the {size} ranks of the group")
    nodes = num_nodes or len(set(hosts))
    if size % nodes:
        return Topology(gpus_per_node=size), "its nodes hold different numbers of ranks"
    topology = Topology(nodes=nodes, gpus_per_node=size // nodes)
    for rank in range(size):
        if any(hosts[peer] != hosts[rank] for peer in topology.node_members(rank)):
            return topology, "the ranks of a node are not neighbours in the group"
    return topology, next((reason for _, reason in places if reason), None)


def _host() -> str:
    """The same for processes that can share memory and see each other: one boot of one machine."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    shared = Path("/dev/shm")  # noqa: S108 - the system's shared memory
    identity = boot.read_text(encoding="utf-8").strip() if boot.exists() else ""
    mount = shared.stat().st_dev if shared.exists() else 0
    processes = Path("/proc/self/ns/pid")
    namespace = processes.readlink().name if processes.is_symlink() else ""
    return f"{identity}/{mount}/{namespace}"
