"""``weft bench allreduce`` as a value: what is measured beside what, on how many ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from weft.bench.sizes import parse_sizes
from weft.errors import UserError
from weft.fabric.fabric import check_shape
from weft.launch.environment import device_type
from weft.launch.own_ranks import on_ranks
from weft.vocabulary.checks import check_seconds
from weft.vocabulary.result import BenchResult

if TYPE_CHECKING:
    from weft.bench.allreduce_ranks import BenchPlan

DTYPES: Final = {
    "cpu": ("float32", "bfloat16", "float16", "float64"),
    "cuda": ("bfloat16", "float32", "float16"),
}
"""What can be added on a device, the default first."""

MODES: Final = {"cpu": ("eager",), "cuda": ("graph", "eager")}
"""How calls are launched on a device, the default first."""


@dataclass(frozen=True, kw_only=True)
class AllReduceBench:
    """weft's algorithms and the library's own, calls interleaved, every sum checked.

    Example::

        result = weft.AllReduceBench(ranks_per_node=2, sizes="8K:1M").run()
    """

    nodes: Annotated[int, "Nodes; virtual ones where all run here."] = 1
    ranks_per_node: Annotated[int, "Ranks in each node."] = 4
    sizes: Annotated[str, "8K:4M (powers of two) or 8K,100,2M."] = "8K:4M"
    dtypes: Annotated[
        str | None, f"From {', '.join(DTYPES['cpu'])} [float32; bfloat16 on GPUs]."
    ] = None
    algorithms: Annotated[str, "Names with commas, or all."] = "all"
    rounds: Annotated[int, "Timed calls of each algorithm at a size."] = 40
    mode: Annotated[str | None, "eager, or on GPUs graph (captured) [graph on GPUs]."] = None
    transports: Annotated[str, "Between nodes of GPUs, with commas: peer, nvshmem, tcp."] = "peer"
    device: Annotated[str, "auto, cpu or cuda."] = "auto"
    timeout: Annotated[float, "Longest wait for another rank, in seconds."] = 60.0

    def __post_init__(self) -> None:
        check_shape(self.nodes, self.ranks_per_node)
        parse_sizes(self.sizes)
        check_seconds("timeout", self.timeout)
        if self.num_ranks < 2:
            raise UserError("`ranks_per_node` 1: one rank alone has nobody to reduce with; use 2")
        if self.rounds < 5:
            raise UserError(f"`rounds` {self.rounds}: a median needs at least 5")

    @property
    def num_ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def run(self) -> BenchResult:
        """Measure on ranks that are started here, or that a launcher started; ``wrong`` counts wrong values."""
        from weft.bench.allreduce_ranks import run_benchmark

        return BenchResult(on_ranks(self.num_ranks, run_benchmark, self.plan()))

    def plan(self) -> BenchPlan:
        """What every rank does; UserError for what the device cannot."""
        from weft.bench import allreduce_ranks as on_rank
        from weft.bench.allreduce import Effort

        kind = device_type(self.device)
        links = on_rank.known_transports(self.transports, self.nodes)
        if kind == "cuda":
            shape = (self.nodes, self.ranks_per_node, links)
            names = on_rank.known_device_algorithms(self.algorithms, *shape)
        elif self.transports != "peer":
            raise UserError(
                f"`transports` {self.transports}: for GPUs; leave it out with `device` cpu"
            )
        else:
            names = on_rank.known_algorithms(self.algorithms)
        dtypes = (None,) if self.dtypes is None else self.dtypes.split(",")
        return on_rank.BenchPlan(
            nodes=self.nodes,
            ranks_per_node=self.ranks_per_node,
            sizes=tuple(parse_sizes(self.sizes)),
            dtypes=tuple(_one_of("dtypes", name, DTYPES[kind], kind) for name in dtypes),
            algorithms=names,
            effort=Effort(rounds=self.rounds),
            device=kind,
            timeout_s=self.timeout,
            mode=_one_of("mode", self.mode, MODES[kind], kind),
            transports=links,
        )


def _one_of(option: str, value: str | None, known: tuple[str, ...], device: str) -> str:
    if value is None:
        return known[0]
    if value.strip() not in known:
        raise UserError(
            f"`{option}` {value}: {value.strip()!r} is unknown with `device` {device}; "
            f"choose from {', '.join(known)}"
        )
    return value.strip()
