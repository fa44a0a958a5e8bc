"""The layouts of a number of GPUs, and the reason each impossible one is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from weft.errors import LayoutError
from weft.vocabulary.layout import Layout, valid_tp
from weft.vocabulary.model_spec import ModelSpec

_NO_SEQUENCE_PARALLELISM: Final = (
    "the engine has no sequence parallelism (--engine weft plans with it)"
)
_NO_CONTEXT_PARALLELISM: Final = (
    "the engine keeps whole positions on every rank (--engine vllm plans with dcp)"
)
_EXPERTS_OVER_REPLICAS: Final = (
    "experts spread over replicas make their steps wait for each other, which is not predicted"
)


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A layout that cannot be used, and why (with the numbers).

    excess: how many times the broken limit on latency it is; 0 for other reasons.
    """

    name: str
    reason: str
    excess: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """``num_gpus`` devices in nodes of ``gpus_per_node``."""

    num_gpus: int
    gpus_per_node: int

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise LayoutError(f"`num_gpus` {self.num_gpus}: must be at least 1")
        if self.gpus_per_node < 1:
            raise LayoutError(f"`gpus_per_node` {self.gpus_per_node}: must be at least 1")
        if self.num_gpus > self.gpus_per_node and self.num_gpus % self.gpus_per_node:
            raise LayoutError(
                f"`num_gpus` {self.num_gpus}: not a whole number of nodes of {self.gpus_per_node}; "
                f"use {self.num_gpus // self.gpus_per_node * self.gpus_per_node} or change "
                "`gpus_per_node`"
            )

    @property
    def nodes(self) -> int:
        return -(-self.num_gpus // self.gpus_per_node)


def layouts(
    spec: ModelSpec,
    cluster: Cluster,
    *,
    sequence_parallel: bool = True,
    context_parallel: bool = True,
) -> tuple[list[Layout], list[Rejection]]:
    """Every tp x pp x sp x ep x dp that uses all GPUs, and the products that cannot run.

    With dcp where ranks hold the same heads of the cache, as far as it goes. sequence_parallel,
    context_parallel: whether the engine has it; if not, its layouts are rejected.
    """
    usable: list[Layout] = []
    rejected: list[Rejection] = []
    for tp, pp in _degrees(cluster.num_gpus):
        for sp, ep, dcp in _variants(spec, tp):
            dp = cluster.num_gpus // (tp * pp)
            layout = Layout(tp=tp, pp=pp, dp=dp, sp=sp, ep=ep, dcp=dcp, nodes=cluster.nodes)
            reason = _impossible(spec, layout, cluster)
            if reason is None and sp > 1 and not sequence_parallel:
                rejected.append(Rejection(name=layout.name, reason=_NO_SEQUENCE_PARALLELISM))
            elif reason is None and dcp > 1 and not context_parallel:
                rejected.append(Rejection(name=layout.name, reason=_NO_CONTEXT_PARALLELISM))
            elif reason is None:
                usable.append(layout)
            elif (sp, ep, dcp) == (1, 1, 1):
                rejected.append(Rejection(name=layout.name, reason=reason))
        rejected += _experts_over_replicas(spec, cluster, tp, pp)
    return usable, rejected


def _experts_over_replicas(
    spec: ModelSpec, cluster: Cluster, tp: int, pp: int
) -> Iterator[Rejection]:
    dp = cluster.num_gpus // (tp * pp)
    ep = tp * dp
    if spec.is_moe and dp > 1 and spec.num_experts % ep == 0:
        name = Layout(tp=tp, pp=pp, dp=dp, ep=ep).name
        yield Rejection(name=name, reason=_EXPERTS_OVER_REPLICAS)


def _degrees(num_gpus: int) -> Iterator[tuple[int, int]]:
    divisors = [n for n in range(1, num_gpus + 1) if num_gpus % n == 0]
    for tp in divisors:
        for pp in divisors:
            if num_gpus % (tp * pp) == 0:
                yield tp, pp


def _variants(spec: ModelSpec, tp: int) -> Iterator[tuple[int, int, int]]:
    """(sp, ep, dcp): sequence parallelism off or on; experts sliced by tp or spread over it.

    Positions whole, or over all ranks that hold the same heads.
    """
    yield 1, 1, 1
    copies = spec.cache_copies(tp)
    if tp > 1:
        yield tp, 1, 1
    spread = tp if spec.is_moe else 1
    if spread > 1:
        yield 1, spread, 1
    if copies > 1:
        yield 1, spread, copies


def _impossible(spec: ModelSpec, layout: Layout, cluster: Cluster) -> str | None:
    width = cluster.gpus_per_node
    if layout.tp % width and width % layout.tp:
        return (
            f"tensor-parallel groups of {layout.tp} would straddle nodes of {width} GPUs unevenly"
        )
    if layout.tp > max(valid_tp(spec)):
        return (
            f"tp {layout.tp} is more than the largest degree that divides {spec.name} "
            f"({max(valid_tp(spec))})"
        )
    try:
        layout.check_model(spec)
    except LayoutError as error:
        return str(error)
    return None
