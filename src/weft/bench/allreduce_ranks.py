"""What ``weft bench allreduce`` does on one rank: join, set up the algorithms, measure."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import torch

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.errors import UnknownAlgorithmError
from weft.allreduce.selection import AUTO, BACKEND, LIBRARY, canonical
from weft.bench.allreduce import (
    SCHEMA,
    AllReduce,
    Benchmark,
    Effort,
    Measurement,
    Runs,
    host_runs,
)
from weft.comm.all_reduce import open_reducer
from weft.comm.groups import ProcessGroups, open_groups
from weft.errors import UserError
from weft.fabric.fingerprint import fingerprint
from weft.kernels.reducer import Reducer
from weft.kernels.selection import BETWEEN_NODES, GroupShape
from weft.launch.environment import current_rank, pick_device
from weft.vocabulary.layout import Layout


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What to measure: ``nodes`` (virtual on one machine) of ``ranks_per_node``.

    device: "cpu" or "cuda". mode: "eager" (call by call) or, on GPUs, "graph".
    transports: between the nodes, GPUs only.
    """

    nodes: int
    ranks_per_node: int
    sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    algorithms: tuple[str, ...]
    effort: Effort
    device: str
    timeout_s: float
    mode: str = "eager"
    transports: tuple[str, ...] = ("peer",)

    @property
    def layout(self) -> Layout:
        return Layout(tp=self.nodes * self.ranks_per_node)

    @property
    def topologies(self) -> tuple[GroupShape, ...]:
        """The group, once a transport."""
        return topologies(self.nodes, self.ranks_per_node, self.transports)


def run_benchmark(plan: BenchPlan) -> dict[str, Any]:
    """Measure on every rank; the ``weft.bench.allreduce/1`` object, the same on all of them."""
    place = current_rank()
    if "tcp" in plan.transports:
        pose_as_hosts(place.rank // plan.ranks_per_node)
    device = pick_device(plan.device, place.local_rank)
    with open_groups(
        plan.layout,
        rank=place.rank,
        device=device,
        timeout_s=plan.timeout_s,
        all_reduce=LIBRARY,
    ) as groups:
        measure = _measure_on_gpus if device.type == "cuda" else _measure_on_cpu
        rows, details = measure(plan, groups)
    return {
        "schema": SCHEMA,
        "machine": _machine(plan) | details,
        "rows": [asdict(row) for row in rows],
    }


def _machine(plan: BenchPlan) -> dict[str, Any]:
    return dict(fingerprint()) | {
        "ranks": plan.layout.world_size,
        "nodes": plan.nodes,
        "backend": "nccl" if plan.device == "cuda" else "gloo",
        "torch": torch.__version__,
        "mode": plan.mode,
    }


def pose_as_hosts(node: int) -> None:
    """Where all ranks share this machine, make NCCL take virtual nodes for hosts with TCP."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        os.environ.update(NCCL_HOSTID=f"node{node}", NCCL_SOCKET_IFNAME="lo")


def _measure_on_cpu(
    plan: BenchPlan, groups: ProcessGroups
) -> tuple[list[Measurement], dict[str, str]]:
    runs, names = _host_runs(plan, groups)
    benchmark = Benchmark(groups.world, runs, groups.device)
    rows = benchmark.run(plan.sizes, plan.dtypes, plan.effort)
    return rows, {"algorithms": ", ".join(names)}


def _host_runs(plan: BenchPlan, groups: ProcessGroups) -> tuple[Runs, list[str]]:
    reducer = open_reducer(
        groups.process_group(groups.world.ranks),
        groups.device,
        num_nodes=plan.nodes,
        timeout_s=plan.timeout_s,
    )
    chosen: dict[str, AllReduce] = {
        name: partial(reducer.all_reduce, algorithm=name)
        for name in plan.algorithms
        if _worth_running(name, plan)
    }
    return host_runs(chosen, alignment(reducer)), list(chosen)


def _measure_on_gpus(
    plan: BenchPlan, groups: ProcessGroups
) -> tuple[list[Measurement], dict[str, str]]:
    from weft.bench.device_runs import device_runs
    from weft.kernels.contenders import open_field

    field = open_field(
        groups.process_group(groups.world.ranks),
        plan.algorithms,
        plan.topologies,
        max_bytes=max(plan.sizes),
        timeout_s=plan.timeout_s,
    )
    benchmark = Benchmark(groups.world, device_runs(field.contenders, plan.mode), groups.device)
    rows = benchmark.run(plan.sizes, plan.dtypes, plan.effort)
    field.close()
    missing = "; ".join(f"{name}: {reason}" for name, reason in field.missing.items())
    return rows, {
        "algorithms": ", ".join(contender.name for contender in field.contenders),
        "unavailable": missing,
        "transports": ", ".join(plan.transports),
        "nccl": ".".join(str(part) for part in torch.cuda.nccl.version()),
    }


def alignment(reducer: Reducer) -> AllReduce:
    """The cheapest common start: the machine's own shared memory where it can be used."""
    name = "one_shot" if "one_shot" in reducer.algorithms else BACKEND
    return partial(reducer.all_reduce, algorithm=name)


def _worth_running(name: str, plan: BenchPlan) -> bool:
    """Hierarchical algorithms are the flat ones where there is one node."""
    return plan.nodes > 1 or not name.startswith("hierarchical")


DEFAULT_ALGORITHMS: Final = (BACKEND, AUTO, *PROGRAMS)


def known_algorithms(text: str) -> tuple[str, ...]:
    """The CPU algorithms of a list with commas (``all``: every one), the library's own first."""
    return _chosen(text, DEFAULT_ALGORITHMS, DEFAULT_ALGORITHMS)


def known_device_algorithms(
    text: str, nodes: int, ranks_per_node: int, transports: tuple[str, ...]
) -> tuple[str, ...]:
    """The GPU algorithms of a list with commas (``all``: every one), the library's own first."""
    from weft.kernels.contenders import names_of

    known = names_of(topologies(nodes, ranks_per_node, transports))
    return _chosen(text, known, known)


def _chosen(text: str, everything: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    names = everything
    if text != "all":
        names = tuple(canonical(part.strip()) for part in text.split(","))
    for name in names:
        if name not in known:
            raise UnknownAlgorithmError(
                f"`algorithms` {text}: {name!r} is unknown; choose from all, {', '.join(known)}"
            )
    return tuple(dict.fromkeys((BACKEND, *names)))


def known_transports(text: str, nodes: int) -> tuple[str, ...]:
    """The transports of a list with commas; all but GPU memory need several nodes."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in BETWEEN_NODES:
            raise UserError(
                f"`transports` {text}: {name!r} is unknown; choose from {', '.join(BETWEEN_NODES)}"
            )
        if name != "peer" and nodes < 2:
            raise UserError(f"`transports` {text}: {name} links nodes; use `nodes` 2 or more")
    return names


def topologies(
    nodes: int, ranks_per_node: int, transports: tuple[str, ...]
) -> tuple[GroupShape, ...]:
    """The same group over every transport."""
    return tuple(
        GroupShape(num_ranks=nodes * ranks_per_node, nodes=nodes, transport=transport)
        for transport in transports
    )
