"""Event simulation of the programs over α-β links, to check the closed forms.

Every rank has one port inside its node and one to the network. A slice occupies its port
for bytes·k·β and arrives α later; slices of one port go out in order. A rank enters its
next step when everything it waits for has arrived. Ranks of a node that send to the
network in the same step share its adapters evenly. Receiving ports and switches are
never short: the programs spread their receivers.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.allreduce.algorithms import build
from weft.allreduce.program import Program, Send, Topology
from weft.fabric.fabric import INTER, INTRA, Fabric


def simulate_us(
    algorithm: str,
    count: int,
    element_bytes: int,
    topology: Topology,
    fabric: Fabric,
    start_us: Sequence[float] | None = None,
) -> list[float]:
    """When each rank has the result, in µs after 0.

    start_us: when each rank makes the call (all at 0 if left out).
    """
    programs = [build(algorithm, topology, count, rank) for rank in range(topology.ranks)]
    links = _Links(algorithm, element_bytes, topology, fabric)
    ready = list(start_us) if start_us is not None else [0.0] * topology.ranks
    if any(programs):
        ready = [time + fabric.call_us for time in ready]
    for index in range(len(programs[0])):
        ready = _run_step(programs, index, ready, links)
    return ready


def _run_step(
    programs: Sequence[Program], index: int, ready: list[float], links: _Links
) -> list[float]:
    links.share(programs, index)
    arrival: dict[tuple[int, int], float] = {}
    for rank, program in enumerate(programs):
        for send in program[index].sends:
            arrival[rank, send.target] = links.transfer(rank, send, ready[rank])
    return [
        max([ready[rank], *(arrival[source, rank] for source, _ in program[index].receives(rank))])
        for rank, program in enumerate(programs)
    ]


class _Links:
    """The ports of all ranks and when each is free."""

    def __init__(
        self, algorithm: str, element_bytes: int, topology: Topology, fabric: Fabric
    ) -> None:
        self.topology, self.fabric = topology, fabric
        self.uses_packets = algorithm != "ring"
        self.element_bytes = element_bytes
        self.free = {(rank, tier): 0.0 for rank in range(topology.ranks) for tier in (INTRA, INTER)}
        self.shares: list[float] = []

    def share(self, programs: Sequence[Program], index: int) -> None:
        """Divide each node's adapters among the ranks that leave the node in this step."""
        senders = [0] * self.topology.nodes
        for rank, program in enumerate(programs):
            leaves = any(self._tier(rank, send) == INTER for send in program[index].sends)
            senders[self.topology.node_of(rank)] += leaves
        width = self.topology.gpus_per_node
        self.shares = [self.fabric.nic_share(count, width) for count in senders]

    def transfer(self, rank: int, send: Send, ready_us: float) -> float:
        """Occupy the port; return when the slice has arrived."""
        name = self._tier(rank, send)
        tier = self.fabric.tier(name)
        size = (send.stop - send.start) * self.element_bytes
        time = size * (tier.packet_factor if self.uses_packets else 1.0) * tier.us_per_byte
        if name == INTER:
            time /= self.shares[self.topology.node_of(rank)]
        self.free[rank, name] = max(ready_us, self.free[rank, name]) + time
        return self.free[rank, name] + tier.latency_us

    def _tier(self, rank: int, send: Send) -> str:
        near = self.topology.node_of(rank) == self.topology.node_of(send.target)
        return INTRA if near else INTER


def is_exact(algorithm: str, nodes: int, gpus_per_node: int) -> bool:
    """Whether the closed form is the simulated time, not an upper bound of it.

    Folding in overlaps with the exchanges, and a ring over two kinds of link pays the slow
    one only where it crosses: there the form is an upper bound.
    """
    powers = _is_power(nodes) and _is_power(gpus_per_node)
    if algorithm == "ring":
        return nodes == 1 or gpus_per_node == 1
    if algorithm == "hierarchical_doubling":
        return _is_power(nodes)
    return powers or algorithm not in ("recursive_doubling", "halving_doubling")


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0
