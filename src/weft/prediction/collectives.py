"""Time of every collective of a step: the schedule's rows priced by the fabric.

All-reduces come from :mod:`weft.allreduce.cost`; which algorithm runs is the engine's
rule. The other operations are rings and single hops over the same links.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Final

from weft.allreduce.cost import WEFT_ALGORITHMS, latency_uncertainty_us, latency_us
from weft.fabric.fabric import Fabric
from weft.prediction.engine_profile import EngineProfile
from weft.vocabulary.layout import Layout
from weft.vocabulary.schedule import Collective

WEFT_FUSED: Final = "weft_fused"
"""weft's kernels as its engine calls them, with residual and norm: priced where measured."""

VLLM_CUSTOM_LIMIT_BYTES: Final = 8 << 20
VLLM_CUSTOM_RANKS: Final = (2, 4, 6, 8)

_TABLE_SPREAD: Final = 0.08
_FORM_SPREAD: Final = 0.15


@dataclass(frozen=True, kw_only=True)
class Group:
    """``nodes`` x ``gpus_per_node`` ranks that communicate."""

    nodes: int
    gpus_per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node


def neighbours(layout: Layout, ranks: int) -> Group:
    """The shape of a group of neighbouring ranks: on as few nodes as possible."""
    width = min(ranks, layout.ranks_per_node)
    return Group(nodes=-(-ranks // width), gpus_per_node=width)


@lru_cache(maxsize=512)
def num_network_hops(layout: Layout) -> int:
    """Pipeline boundaries whose two stages lie on different nodes."""
    nodes = [layout.node_of(layout.rank_of(stage=stage)) for stage in range(layout.pp)]
    return sum(a != b for a, b in pairwise(nodes))


@dataclass(frozen=True, kw_only=True)
class Price:
    """Time of one call in µs, one standard deviation of it, and the algorithm."""

    time_us: float
    deviation_us: float
    algorithm: str


@dataclass(kw_only=True)
class Pricing:
    """Prices of collectives on one fabric under one engine's rule; remembers what it priced."""

    fabric: Fabric
    profile: EngineProfile
    _known: dict[tuple[str, int, Group], Price] = field(default_factory=dict)

    def price(self, row: Collective, layout: Layout) -> Price:
        """One call of ``row``; a send carries its hop, the matching recv is free.

        Hops of a pipeline that crosses nodes are averaged over its boundaries.
        """
        size = row.message_bytes or 0
        if row.group != "pp":
            return self.cached(row.op, size, neighbours(layout, row.group_size or 1))
        width = 2 if row.op == "send" else layout.pp
        near = self.cached(row.op, size, Group(nodes=1, gpus_per_node=width))
        crossing = num_network_hops(layout)
        if not crossing:
            return near
        far = self.cached(row.op, size, Group(nodes=width, gpus_per_node=1))
        share = crossing / (layout.pp - 1) if row.op == "send" else 1.0
        return Price(
            time_us=share * far.time_us + (1 - share) * near.time_us,
            deviation_us=share * far.deviation_us + (1 - share) * near.deviation_us,
            algorithm=far.algorithm,
        )

    def cached(self, op: str, size: int, group: Group) -> Price:
        key = (op, size, group)
        if key not in self._known:
            self._known[key] = self._compute(op, size, group)
        return self._known[key]

    def _compute(self, op: str, size: int, group: Group) -> Price:
        if group.ranks == 1 or op == "recv":
            return Price(time_us=0.0, deviation_us=0.0, algorithm="none")
        if op == "all_reduce":
            return self._all_reduce(size, group)
        time = _linear_us(op, size, group, self.fabric)
        return Price(time_us=time, deviation_us=_FORM_SPREAD * time, algorithm="linear")

    def _candidates(self, size: int, group: Group) -> tuple[str, ...]:
        """Algorithms that the engine may choose from; it takes the fastest of them."""
        rule = self.profile.all_reduce
        if rule == "nccl":
            return ("nccl",)
        if rule == "vllm":
            custom = (
                group.nodes == 1
                and group.ranks in VLLM_CUSTOM_RANKS
                and size <= VLLM_CUSTOM_LIMIT_BYTES
            )
            return ("vllm_custom",) if custom else ("nccl",)
        if self.fabric.table(WEFT_FUSED, ranks=group.ranks, nodes=group.nodes) is not None:
            own: tuple[str, ...] = (WEFT_FUSED, "nccl")
        else:
            own = (*WEFT_ALGORITHMS, "nccl")
        return (*own, "vllm_custom") if rule == "fastest" and group.nodes == 1 else own

    def _all_reduce(self, size: int, group: Group) -> Price:
        names = self._candidates(size, group)
        times = {name: self._all_reduce_us(name, size, group) for name in names}
        name = min(times, key=times.__getitem__)
        return Price(
            time_us=times[name],
            deviation_us=_deviation_us(name, size, group, self.fabric, times[name]),
            algorithm=name,
        )

    def _all_reduce_us(self, name: str, size: int, group: Group) -> float:
        fabric = self.fabric
        table = fabric.table(name, ranks=group.ranks, nodes=group.nodes)
        if table is not None and (size <= table.bytes[-1] or name == WEFT_FUSED):
            return float(table.interpolate(size))
        if table is not None:
            last = table.bytes[-1]
            return table.latency_us[-1] + self._streaming_us(size - last, group)
        if name == "vllm_custom":
            return self._custom_us(size, group)
        shape = (group.nodes, group.gpus_per_node)
        time = float(latency_us(name, size, *shape, fabric, use_tables=False))
        if name == "nccl" and group.nodes == 1:
            return max(time, self._streaming_us(size, group))
        return time

    def _streaming_us(self, size: int, group: Group) -> float:
        """Ring traffic of ``size`` bytes at the sustained bandwidth of the slowest link."""
        profile = self.profile
        share = profile.nccl_pair_share if group.ranks == 2 else profile.nccl_share
        left = share.value * profile.large_messages_share.value
        bandwidth = self.fabric.intra.bandwidth_gb_s * left
        if group.nodes > 1:
            bandwidth = min(bandwidth, self.fabric.node_bandwidth_gb_s(group.gpus_per_node))
        return 2 * (group.ranks - 1) / group.ranks * size * 1e-3 / bandwidth

    def _custom_us(self, size: int, group: Group) -> float:
        """VLLM's barrier-and-pull kernel in its one-phase or its two-phase form."""
        n, profile = group.ranks, self.profile
        us_per_byte = 1e-3 / (self.fabric.intra.bandwidth_gb_s * profile.custom_share.value)
        one_shot = profile.custom_us.value + n * profile.custom_rank_us.value
        two_shot = profile.custom_two_us.value + n * profile.custom_two_rank_us.value
        return min(
            one_shot + (n - 1) * size * us_per_byte,
            two_shot + 2 * (n - 1) / n * size * us_per_byte,
        )


def _deviation_us(name: str, size: int, group: Group, fabric: Fabric, time: float) -> float:
    if fabric.table(name, ranks=group.ranks, nodes=group.nodes) is not None:
        return _TABLE_SPREAD * time
    if name in ("vllm_custom", "nccl"):
        return _FORM_SPREAD * time
    shape = (group.nodes, group.gpus_per_node)
    return max(_TABLE_SPREAD * time, float(latency_uncertainty_us(name, size, *shape, fabric)))


def _linear_us(op: str, size: int, group: Group, fabric: Fabric) -> float:
    """Call, latency of the steps, and bytes over the slowest link.

    A ring for all-gather and reduce-scatter (n - 1 steps of size/n), pairwise for
    all-to-all, one hop for send, and a tree's depth for broadcast and gather.
    """
    tier = fabric.inter if group.nodes > 1 else fabric.intra
    n = group.ranks
    if op == "send":
        steps, traffic = 1, float(size)
    elif op in ("broadcast", "gather"):
        steps, traffic = (n - 1).bit_length(), float(size)
    else:
        steps, traffic = n - 1, (n - 1) / n * size
    return fabric.call_us + steps * tier.latency_us + traffic * tier.us_per_byte
