"""What ``weft calibrate`` does on one rank: measure some groups, fit, check, write.

On the CPU: weft's programs on two and four ranks, also as virtual nodes. On GPUs: the kernels
and the library's own on two, four and all GPUs of this machine, in captured graphs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Final

import torch

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.fitting import fit_fabric
from weft.allreduce.selection import BACKEND, LIBRARY
from weft.bench.allreduce import Benchmark, Effort, Measurement, check_right, host_runs
from weft.bench.allreduce_ranks import alignment
from weft.comm.all_reduce import open_reducer
from weft.comm.communicator import Communicator
from weft.comm.groups import ProcessGroups, open_groups
from weft.errors import EnvironmentUnavailable
from weft.fabric.fabric import Fabric, MeasuredTable
from weft.fabric.fingerprint import describe, fingerprint
from weft.kernels.selection import FLAT, MAX_RANKS, GroupShape
from weft.launch.environment import current_rank, pick_device
from weft.vocabulary.layout import Layout

NUM_RANKS: Final = 4
"""Ranks of a calibration of the CPU."""

_FLAT: Final = tuple(name for name in PROGRAMS if not name.startswith("hierarchical"))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is measured on a device: sizes for the tables, sizes to check them, types, rounds."""

    sizes: tuple[int, ...]
    held_out: tuple[int, ...]
    dtypes: tuple[str, ...]
    rounds: int


_CPU_SIZES: Final = tuple(4**power for power in range(5, 12))
_GPU_SIZES: Final = tuple(2**power for power in range(10, 27))
SCALES: Final = {
    "cpu": Scale(
        sizes=_CPU_SIZES,
        held_out=tuple(2 * size for size in _CPU_SIZES[:-1]),
        dtypes=("float32", "bfloat16"),
        rounds=30,
    ),
    "cuda": Scale(
        sizes=_GPU_SIZES,
        held_out=tuple(3 * size // 2 for size in _GPU_SIZES[:-1:3]),
        dtypes=("bfloat16", "float32", "float16"),
        rounds=15,
    ),
}
"""1 KiB to 4 MiB in steps of four on the CPU, to 64 MiB in steps of two on GPUs."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The fabric, and the relative errors of its predictions where it did not measure."""

    fabric: Fabric
    errors: list[float]

    @property
    def median_error(self) -> float:
        return statistics.median(self.errors) if self.errors else 0.0


@dataclass(frozen=True, kw_only=True)
class _Group:
    """``nodes`` virtual nodes over the first ``ranks`` ranks."""

    ranks: int
    nodes: int = 1

    @property
    def algorithms(self) -> tuple[str, ...]:
        return (BACKEND, *(PROGRAMS if self.nodes > 1 else _FLAT))


_CPU_GROUPS: Final = (
    _Group(ranks=2),
    _Group(ranks=2, nodes=2),
    _Group(ranks=NUM_RANKS),
    _Group(ranks=NUM_RANKS, nodes=2),
)


def gpu_groups(num_gpus: int) -> tuple[_Group, ...]:
    """Two, four, eight and all GPUs of a machine, as far as there are so many."""
    sizes = {size for size in (2, 4, MAX_RANKS) if size <= num_gpus} | {min(num_gpus, MAX_RANKS)}
    return tuple(_Group(ranks=size) for size in sorted(sizes))


def calibrate(
    name: str,
    device: str,
    seconds: float,
    timeout_s: float,
    publish: Callable[[Calibration], None],
    *,
    check: bool,
) -> None:
    """Measure on every rank for about ``seconds``.

    device: "cpu" or "cuda". publish: takes the calibration, on rank 0 while the group is open.
    check: also measure sizes between the tables' and compare the predictions.
    """
    place = current_rank()
    scale = SCALES[device]
    shapes = gpu_groups(place.world_size) if device == "cuda" else _CPU_GROUPS
    sizes = tuple(sorted(scale.sizes + scale.held_out)) if check else scale.sizes
    cells = len(sizes) * len(scale.dtypes) * len(shapes)
    effort = Effort(rounds=scale.rounds, warm_up=1, seconds_a_size=seconds / cells)
    measured: list[tuple[_Group, list[Measurement]]] = []
    with open_groups(
        Layout(tp=place.world_size),
        rank=place.rank,
        device=pick_device(device, place.local_rank),
        timeout_s=timeout_s,
        all_reduce=LIBRARY,
    ) as groups:
        communicators = {
            size: groups.leading(size) for size in dict.fromkeys(shape.ranks for shape in shapes)
        }
        for shape in shapes:
            communicator = communicators[shape.ranks]
            rows = []
            if communicator is not None:
                measure = _measure_on_gpus if device == "cuda" else _measure_on_cpu
                rows = measure(shape, groups, communicator, sizes, effort)
            measured.append((shape, rows))
            groups.world.all_gather(torch.zeros(1, device=groups.device), site="calibrate")
        if place.rank == 0:
            publish(_calibration(name, device, measured))


def _measure_on_cpu(
    group: _Group,
    groups: ProcessGroups,
    communicator: Communicator,
    sizes: Sequence[int],
    effort: Effort,
) -> list[Measurement]:
    torch_group = groups.process_group(communicator.ranks)
    reducer = open_reducer(torch_group, groups.device, num_nodes=group.nodes, use_fabric=False)
    calls = {name: partial(reducer.all_reduce, algorithm=name) for name in group.algorithms}
    benchmark = Benchmark(communicator, host_runs(calls, alignment(reducer)), groups.device)
    return benchmark.run(sizes, SCALES["cpu"].dtypes, effort)


def _measure_on_gpus(
    group: _Group,
    groups: ProcessGroups,
    communicator: Communicator,
    sizes: Sequence[int],
    effort: Effort,
) -> list[Measurement]:
    from weft.bench.device_runs import device_runs
    from weft.kernels.contenders import open_field

    field = open_field(
        groups.process_group(communicator.ranks),
        (BACKEND, *FLAT),
        (GroupShape(num_ranks=group.ranks),),
        max_bytes=max(sizes),
        timeout_s=30.0,
        use_fabric=False,
    )
    if field.missing:
        raise EnvironmentUnavailable("; ".join(field.missing.values()))
    device = torch.device("cuda", torch.cuda.current_device())
    benchmark = Benchmark(communicator, device_runs(field.contenders, "graph"), device)
    rows = benchmark.run(sizes, SCALES["cuda"].dtypes, effort)
    field.close()
    check_right([asdict(row) for row in rows])
    return rows


def _calibration(
    name: str, device: str, measured: Sequence[tuple[_Group, list[Measurement]]]
) -> Calibration:
    identity = fingerprint()
    source = f"weft calibrate, {describe(identity)}, torch {torch.__version__}"
    kept = SCALES[device].sizes
    tables = [table for group, rows in measured for table in _tables(group, rows, kept, source)]
    fitted = tables if device == "cuda" else _fitting_cores(tables, identity["cores"])
    most = max(group.ranks for group, _ in measured)
    fabric = fit_fabric(name, tables, most, identity, source, fitted=fitted)
    fabric = replace(fabric, uses_nccl=device == "cuda")
    errors = [
        error
        for group, rows in measured
        for row in rows
        if row.bytes not in kept
        for error in _error(fabric, group, row)
    ]
    return Calibration(fabric=fabric, errors=errors)


def _fitting_cores(tables: Sequence[MeasuredTable], cores: str) -> list[MeasuredTable]:
    """Tables of groups with a core for each rank; a waiting rank else costs a time slice."""
    found = [table for table in tables if table.ranks <= int(cores)]
    return found or list(tables)


def _tables(
    group: _Group, rows: Sequence[Measurement], sizes: Sequence[int], source: str
) -> list[MeasuredTable]:
    kept: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows:
        if row.bytes in sizes:
            kept.setdefault((row.algorithm, row.dtype), []).append(row)
    return [
        MeasuredTable(
            algorithm=algorithm,
            ranks=group.ranks,
            nodes=group.nodes,
            dtype=dtype,
            bytes=tuple(row.bytes for row in of_kind),
            latency_us=_never_falling([row.median_us for row in of_kind]),
            source=source,
        )
        for (algorithm, dtype), of_kind in kept.items()
    ]


def _never_falling(values_us: Sequence[float]) -> tuple[float, ...]:
    """The nearest times (geometric means of neighbours) that do not fall as messages grow.

    A larger message is never faster: where the medians say so, they are noise. Pool adjacent
    violators (Barlow et al., Statistical Inference under Order Restrictions, 1972).
    """
    pools: list[list[float]] = []
    for value in values_us:
        pools.append([math.log(value)])
        while len(pools) > 1 and statistics.fmean(pools[-2]) > statistics.fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    means = (round(math.exp(statistics.fmean(pool)), 2) for pool in pools for _ in pool)
    return tuple(means)


def _error(fabric: Fabric, group: _Group, row: Measurement) -> list[float]:
    """Relative error of the prediction of a size that is not in the tables."""
    table = fabric.table(row.algorithm, ranks=group.ranks, nodes=group.nodes, dtype=row.dtype)
    if table is None:
        return []
    return [abs(float(table.interpolate(row.bytes)) / row.median_us - 1)]
