"""α-β times of every all-reduce algorithm for any N x G and message size, without torch.

Symbols: n ranks, N nodes of G, m bytes, α and β of a tier, k bytes on the wire a byte of
data. A step costs α + bytes·k·β of the slowest link in it. Forms: ring and tree are the
textbook ones; hierarchical recursive doubling is Singhania et al.'s (NVRAR). Every time
includes the fabric's fixed cost of a call. The sums hold for aligned starts: no skew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weft.allreduce import nccl_model
from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.errors import UnknownAlgorithmError
from weft.allreduce.pairing import Pairing
from weft.fabric.fabric import Fabric, Tier, check_shape

Times = NDArray[np.float64]

WEFT_ALGORITHMS: Final = tuple(PROGRAMS)
"""The algorithms that weft has programs for (see weft.allreduce.programs)."""

NCCL_ALGORITHMS: Final = ("nccl_ring", "nccl_tree")

ALGORITHMS: Final = (*WEFT_ALGORITHMS, "tree", *NCCL_ALGORITHMS, "nccl")


def latency_us(
    algorithm: str,
    message_bytes: ArrayLike,
    nodes: int,
    gpus_per_node: int,
    fabric: Fabric,
    *,
    dtype: str | None = None,
    use_tables: bool = True,
) -> Times:
    """Time in µs of one all-reduce of ``message_bytes`` (any shape) on N x G ranks.

    Where the fabric has a measured table of this algorithm on such a group the time is
    interpolated from it, else it is the α-β form. One rank alone needs no time. Raises
    UnknownAlgorithmError, and LayoutError for an empty shape.
    """
    check_shape(nodes, gpus_per_node)
    size = np.asarray(message_bytes, dtype=np.float64)
    if nodes * gpus_per_node == 1:
        return np.zeros_like(size)
    if use_tables:
        table = fabric.table(algorithm, ranks=nodes * gpus_per_node, nodes=nodes, dtype=dtype)
        if table is not None:
            return table.interpolate(size)
    return _form(algorithm)(size, _Group(nodes=nodes, gpus_per_node=gpus_per_node, fabric=fabric))


def latency_uncertainty_us(
    algorithm: str, message_bytes: ArrayLike, nodes: int, gpus_per_node: int, fabric: Fabric
) -> Times:
    """One standard deviation of the α-β form, from the uncertainties of the fabric's numbers."""
    centre = latency_us(algorithm, message_bytes, nodes, gpus_per_node, fabric, use_tables=False)
    variance = np.zeros_like(centre)
    for shifted in _shifted(fabric):
        moved = latency_us(
            algorithm, message_bytes, nodes, gpus_per_node, shifted, use_tables=False
        )
        variance += (moved - centre) ** 2
    return np.asarray(np.sqrt(variance))


def best(
    message_bytes: ArrayLike,
    nodes: int,
    gpus_per_node: int,
    fabric: Fabric,
    algorithms: tuple[str, ...] = WEFT_ALGORITHMS,
) -> tuple[NDArray[np.str_], Times]:
    """The fastest of ``algorithms`` at each size: names and times in µs."""
    times = np.stack(
        [latency_us(name, message_bytes, nodes, gpus_per_node, fabric) for name in algorithms]
    )
    return np.asarray(algorithms)[times.argmin(axis=0)], times.min(axis=0)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """N x G ranks on a fabric, and what one step on them costs."""

    nodes: int
    gpus_per_node: int
    fabric: Fabric

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def call_us(self) -> float:
        return self.fabric.call_us

    def intra_us(self, sent_bytes: Times, *, packets: bool = True) -> Times:
        """A step in which each rank sends ``sent_bytes`` inside its node."""
        tier = self.fabric.intra
        factor = tier.packet_factor if packets else 1.0
        return tier.latency_us + sent_bytes * factor * tier.us_per_byte

    def inter_us(self, sent_bytes: Times, senders: int, *, packets: bool = True) -> Times:
        """A step in which ``senders`` ranks of a node each send ``sent_bytes`` to other nodes."""
        tier = self.fabric.inter
        factor = tier.packet_factor if packets else 1.0
        share = self.fabric.nic_share(senders, self.gpus_per_node)
        return tier.latency_us + sent_bytes * factor * tier.us_per_byte / share

    def all_to_all_us(self, piece_bytes: Times) -> Times:
        """A step in which each rank sends ``piece_bytes`` to every other rank."""
        near, far = self.gpus_per_node - 1, self.ranks - self.gpus_per_node
        times = [self.intra_us(near * piece_bytes)] if near else []
        if far:
            times.append(self.inter_us(far * piece_bytes, self.gpus_per_node))
        return _slowest(times)

    def pair_step_us(self, sent_bytes: Times, senders: int, has_intra: bool) -> Times:
        """A step of pairwise exchanges: at most ``senders`` ranks of a node leave it."""
        times = [self.intra_us(sent_bytes)] if has_intra else []
        if senders:
            times.append(self.inter_us(sent_bytes, senders))
        return _slowest(times)


def _slowest(times: list[Times]) -> Times:
    return np.asarray(np.maximum.reduce(times))


def _ring(size: Times, group: _Group) -> Times:
    """2(n-1)·α + 2(n-1)/n·m·β; each step as slow as the slowest link (an upper bound)."""
    chunk = size / group.ranks
    steps = []
    if group.gpus_per_node > 1:
        steps.append(group.intra_us(chunk, packets=False))
    if group.nodes > 1:
        steps.append(group.inter_us(chunk, 1, packets=False))
    return group.call_us + 2 * (group.ranks - 1) * _slowest(steps)


def _tree(size: Times, group: _Group) -> Times:
    """2·log2(n)·α + 2·m·β, each level with its tier's α, β of the slowest link."""
    levels = [
        (group.fabric.intra, group.gpus_per_node),
        (group.fabric.inter, group.nodes),
    ]
    used = [(tier, math.ceil(math.log2(width))) for tier, width in levels if width > 1]
    latency = sum(2 * depth * tier.latency_us for tier, depth in used)
    slowest = max(tier.us_per_byte for tier, _ in used)
    return group.call_us + latency + 2 * size * slowest


def _recursive_doubling(size: Times, group: _Group) -> Times:
    """log2(n)·(α + m·β); two more steps where n is no power of two."""
    pairing = Pairing(group.ranks, group.gpus_per_node)
    total = np.full_like(size, group.call_us)
    for step in pairing.steps:
        total += group.pair_step_us(size, step.senders_per_node, step.has_intra)
    return total


def _halving_doubling(size: Times, group: _Group) -> Times:
    """Recursive halving (m/2, m/4, ...) and doubling back; two more steps to fold in."""
    pairing = Pairing(group.ranks, group.gpus_per_node)
    total = np.full_like(size, group.call_us)
    for step in pairing.fold_steps:
        total += group.pair_step_us(size, step.senders_per_node, step.has_intra)
    for index, step in enumerate(pairing.exchange_steps):
        half = size / 2 ** (index + 1)
        total += 2 * group.pair_step_us(half, step.senders_per_node, step.has_intra)
    return total


def _one_shot(size: Times, group: _Group) -> Times:
    """Every rank sends everything to every other rank: α + (n-1)·m·k·β."""
    return group.call_us + group.all_to_all_us(size)


def _two_shot(size: Times, group: _Group) -> Times:
    """Slices to their owners, sums back: 2·(α + (n-1)/n·m·k·β)."""
    return group.call_us + 2 * group.all_to_all_us(size / group.ranks)


def _in_node(size: Times, group: _Group) -> Times:
    """Reduce-scatter and all-gather inside the node: 2·(α_i + (G-1)/G·m·k·β_i)."""
    width = group.gpus_per_node
    if width == 1:
        return np.full_like(size, group.call_us)
    return group.call_us + 2 * group.intra_us((width - 1) / width * size)


def _hierarchical(size: Times, group: _Group) -> Times:
    """In the node, plus log2(N)·(α_x + m/G·k·β_x) between nodes; two more steps to fold in."""
    width = group.gpus_per_node
    steps = len(Pairing(group.nodes, 1).steps)
    return _in_node(size, group) + steps * group.inter_us(size / width, width)


def _hierarchical_direct(size: Times, group: _Group) -> Times:
    """In the node, plus one hop between nodes: α_x + (N-1)·m/G·k·β_x."""
    width, others = group.gpus_per_node, group.nodes - 1
    if others == 0:
        return _in_node(size, group)
    return _in_node(size, group) + group.inter_us(others * size / width, width)


def _nccl_ring(size: Times, group: _Group) -> Times:
    return nccl_model.ring_us(size, group.nodes, group.gpus_per_node, group.fabric)


def _nccl_tree(size: Times, group: _Group) -> Times:
    return nccl_model.tree_us(size, group.nodes, group.gpus_per_node, group.fabric)


def _nccl(size: Times, group: _Group) -> Times:
    """NCCL's best."""
    return np.minimum(_nccl_ring(size, group), _nccl_tree(size, group))


_FORMS: Final[dict[str, Callable[[Times, _Group], Times]]] = {
    "ring": _ring,
    "recursive_doubling": _recursive_doubling,
    "halving_doubling": _halving_doubling,
    "one_shot": _one_shot,
    "two_shot": _two_shot,
    "hierarchical_doubling": _hierarchical,
    "hierarchical_direct": _hierarchical_direct,
    "tree": _tree,
    "nccl_ring": _nccl_ring,
    "nccl_tree": _nccl_tree,
    "nccl": _nccl,
}


def _form(algorithm: str) -> Callable[[Times, _Group], Times]:
    try:
        return _FORMS[algorithm]
    except KeyError:
        raise UnknownAlgorithmError(
            f"algorithm {algorithm!r}: unknown here; choose one of {', '.join(ALGORITHMS)}"
        ) from None


def _shifted(fabric: Fabric) -> list[Fabric]:
    """The fabric with one number moved by its uncertainty, for each number."""
    return [
        replace(fabric, call_us=fabric.call_us + fabric.call_uncertainty_us),
        *(replace(fabric, intra=tier) for tier in _shifted_tiers(fabric.intra)),
        *(replace(fabric, inter=tier) for tier in _shifted_tiers(fabric.inter)),
    ]


def _shifted_tiers(tier: Tier) -> tuple[Tier, Tier]:
    return (
        replace(tier, latency_us=tier.latency_us + tier.latency_uncertainty_us),
        replace(tier, bandwidth_gb_s=tier.bandwidth_gb_s + tier.bandwidth_uncertainty_gb_s),
    )
