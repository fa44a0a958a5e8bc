"""Strong scaling by prediction: one model on ever more GPUs, layout families side by side.

Families: ``tp`` (tensor parallelism over everything), ``hybrid`` (tensor parallelism in
groups of four, pipeline across them). What a family cannot divide further becomes replicas.
Each is priced with NCCL's all-reduce and with weft's (hierarchical among them).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from weft.errors import LayoutError
from weft.prediction.latency import predict_latency
from weft.prediction.machines import machine_named
from weft.prediction.prediction import Machine, Prediction
from weft.vocabulary.layout import Layout, valid_tp
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.workload import Workload, workload_named

Family = Literal["tp", "hybrid"]
AllReduce = Literal["nccl", "hierarchical_doubling"]

FAMILIES: Final[tuple[Family, ...]] = ("tp", "hybrid")
ALL_REDUCES: Final[tuple[AllReduce, ...]] = ("nccl", "hierarchical_doubling")
MACHINES: Final = {"a100-slingshot11": "a100-80g", "gh200-ndr": "gh200"}
"""The fabrics of the study and the accelerator on each."""

_HYBRID_TP: Final = 4


@dataclass(frozen=True, kw_only=True)
class ScalePoint:
    """One point of the study; ``speedup`` is against the family's smallest point that fits."""

    model: str
    fabric: str
    workload: str
    gpus: int
    family: Family
    all_reduce: AllReduce
    prediction: Prediction
    speedup: float


def scale_study(
    models: Sequence[str],
    fabrics: Sequence[str],
    workloads: Sequence[str],
    gpu_counts: Sequence[int],
    engine: str = "vllm",
) -> Iterator[ScalePoint]:
    """Every point that fits in memory, in the order of the arguments.

    Raises LayoutError for a fabric that is not part of the study.
    """
    for model in models:
        for fabric in fabrics:
            if fabric not in MACHINES:
                raise LayoutError(
                    f"`fabrics` {fabric}: not in the scale study; choose {' or '.join(MACHINES)}"
                )
            for workload in workloads:
                for family in FAMILIES:
                    for all_reduce in ALL_REDUCES:
                        yield from _curve(
                            model, fabric, workload, gpu_counts, family, all_reduce, engine
                        )


def findings(points: Sequence[ScalePoint]) -> list[str]:
    """One sentence a (model, fabric, workload): who wins at the most GPUs, and by how much."""
    groups: dict[tuple[str, str, str], list[ScalePoint]] = defaultdict(list)
    for point in points:
        groups[point.model, point.fabric, point.workload].append(point)
    return [_finding(key, group) for key, group in groups.items()]


def _finding(key: tuple[str, str, str], group: Sequence[ScalePoint]) -> str:
    most = max(point.gpus for point in group)
    times = {
        (point.family, point.all_reduce): point.prediction.e2e_ms.value
        for point in group
        if point.gpus == most
    }
    family, all_reduce = min(times, key=times.__getitem__)
    best = times[family, all_reduce]
    rest = [
        f"{best_of / best:.2f}x faster than {name}"
        for name, best_of in (
            ("the other family", _best_other(times, family)),
            ("NCCL", times.get((family, "nccl"))),
        )
        if best_of is not None and best_of > best
    ]
    return f"{' · '.join(key)} at {most} GPUs: {family} with {all_reduce}, {', '.join(rest)}"


def _best_other(times: Mapping[tuple[Family, AllReduce], float], family: Family) -> float | None:
    """Shortest time of the families other than ``family``."""
    found = [time for key, time in times.items() if key[0] != family]
    return min(found, default=None)


def _curve(
    model: str,
    fabric: str,
    workload: str,
    gpu_counts: Sequence[int],
    family: Family,
    all_reduce: AllReduce,
    engine: str,
) -> Iterator[ScalePoint]:
    machine = study_machine(fabric, all_reduce, engine)
    spec, load = load_spec(model), workload_named(workload)
    first_ms: float | None = None
    for gpus in gpu_counts:
        prediction = _predict(spec, load, machine, gpus, family)
        if prediction is None:
            continue
        time_ms = prediction.e2e_ms.value
        first_ms = first_ms or time_ms
        yield ScalePoint(
            model=model,
            fabric=fabric,
            workload=workload,
            gpus=gpus,
            family=family,
            all_reduce=all_reduce,
            prediction=prediction,
            speedup=first_ms / time_ms,
        )


def study_machine(fabric: str, all_reduce: AllReduce, engine: str = "vllm") -> Machine:
    """The machine with the all-reduce of the study's choice."""
    machine = machine_named(engine, MACHINES[fabric], fabric)
    rule: Literal["nccl", "weft"] = "nccl" if all_reduce == "nccl" else "weft"
    return replace(machine, profile=replace(machine.profile, all_reduce=rule))


def study_layout(spec: ModelSpec, gpus: int, gpus_per_node: int, family: Family) -> Layout | None:
    """The family's layout of ``gpus`` devices, or None where it has none."""
    degrees = [tp for tp in valid_tp(spec) if gpus % tp == 0]
    tp = max(degrees) if family == "tp" else _HYBRID_TP
    if tp not in degrees:
        return None
    pp = 1
    if family == "hybrid":
        pp = max(n for n in range(1, spec.num_layers + 1) if gpus // tp % n == 0)
    return Layout(tp=tp, pp=pp, dp=gpus // (tp * pp), nodes=-(-gpus // gpus_per_node))


def _predict(
    spec: ModelSpec, load: Workload, machine: Machine, gpus: int, family: Family
) -> Prediction | None:
    layout = study_layout(spec, gpus, machine.fabric.gpus_per_node, family)
    if layout is None:
        return None
    prediction = predict_latency(spec, layout, load, machine)
    return prediction if prediction.memory.fits else None
