"""What ``weft bench allreduce`` does on one rank: join, set up the algorithms, measure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.errors import UnknownAlgorithmError
from weft.allreduce.selection import BACKEND
from weft.bench.allreduce import AllReduce, Benchmark, Effort, Measurement
from weft.comm.all_reduce import ALGORITHMS, AUTO, AllReducer, open_reducer_of
from weft.comm.communicator import Communicator
from weft.comm.groups import open_groups
from weft.errors import EnvironmentUnavailable
from weft.fabric.fingerprint import fingerprint
from weft.launch.environment import current_rank, pick_device
from weft.vocabulary.layout import Layout


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What to measure: ``nodes`` (virtual on one machine) of ``ranks_per_node``."""

    nodes: int
    ranks_per_node: int
    sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    algorithms: tuple[str, ...]
    effort: Effort
    device: str
    timeout_s: float

    @property
    def layout(self) -> Layout:
        return Layout(tp=self.nodes * self.ranks_per_node)


def run_benchmark(plan: BenchPlan) -> tuple[list[Measurement], dict[str, Any]] | None:
    """Measure on every rank; (rows, machine) on rank 0, None elsewhere."""
    place = current_rank()
    device = pick_device(plan.device, place.local_rank)
    with open_groups(
        plan.layout, rank=place.rank, device=device, timeout_s=plan.timeout_s
    ) as groups:
        benchmark, names = _benchmark(plan, groups.world, device)
        rows = benchmark.run(plan.sizes, plan.dtypes, plan.effort)
    if place.rank != 0:
        return None
    machine = dict(fingerprint()) | {
        "ranks": plan.layout.world_size,
        "nodes": plan.nodes,
        "backend": "nccl" if device.type == "cuda" else "gloo",
        "torch": torch.__version__,
        "algorithms": ", ".join(names),
    }
    return rows, machine


def _benchmark(
    plan: BenchPlan, world: Communicator, device: torch.device
) -> tuple[Benchmark, list[str]]:
    if device.type == "cuda":
        raise EnvironmentUnavailable(
            "--device cuda: measured by benchmarks/allreduce_gpu.py; use --device cpu"
        )
    reducer = open_reducer_of(world, num_nodes=plan.nodes)
    chosen: dict[str, AllReduce] = {
        name: partial(reducer.all_reduce, algorithm=name)
        for name in plan.algorithms
        if _worth_running(name, plan)
    }
    return Benchmark(world, chosen, _alignment(reducer), device), list(chosen)


def _alignment(reducer: AllReducer) -> AllReduce:
    """The cheapest common start: the machine's own shared memory where it can be used."""
    name = BACKEND if reducer.reason else "one_shot"
    return partial(reducer.all_reduce, algorithm=name)


def _worth_running(name: str, plan: BenchPlan) -> bool:
    """Hierarchical algorithms are the flat ones where there is one node."""
    return plan.nodes > 1 or not name.startswith("hierarchical")


DEFAULT_ALGORITHMS: Final = (BACKEND, AUTO, *PROGRAMS)


def known_algorithms(text: str) -> tuple[str, ...]:
    """The algorithms of a list with commas (``all``: every one), the library's own first."""
    names = DEFAULT_ALGORITHMS if text == "all" else tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in ALGORITHMS:
            raise UnknownAlgorithmError(
                f"--algorithms {text}: {name!r} is unknown; choose from all, {', '.join(ALGORITHMS)}"
            )
    return tuple(dict.fromkeys((BACKEND, *names)))
