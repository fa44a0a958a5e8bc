"""What ``weft calibrate`` does on one rank: measure some groups, fit, check, write."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.fitting import fit_fabric
from weft.allreduce.selection import BACKEND
from weft.bench.allreduce import Benchmark, Effort, Measurement
from weft.comm.all_reduce import open_reducer_of
from weft.comm.communicator import Communicator
from weft.comm.groups import open_groups
from weft.fabric.fabric import Fabric, MeasuredTable
from weft.fabric.fingerprint import describe, fingerprint
from weft.launch.environment import current_rank
from weft.vocabulary.layout import Layout

SIZES: Final = tuple(4**power for power in range(5, 12))
"""1 KiB to 4 MiB, each four times the one before."""

HELD_OUT: Final = tuple(2 * size for size in SIZES[:-1])
"""Between them; measured to check the predictions, left out of the tables."""

DTYPES: Final = ("float32", "bfloat16")
NUM_RANKS: Final = 4

_FLAT: Final = tuple(name for name in PROGRAMS if not name.startswith("hierarchical"))


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


GROUPS: Final = (
    _Group(ranks=2),
    _Group(ranks=2, nodes=2),
    _Group(ranks=NUM_RANKS),
    _Group(ranks=NUM_RANKS, nodes=2),
)


def calibrate(name: str, seconds: float, timeout_s: float, *, check: bool) -> Calibration | None:
    """Measure on every rank for about ``seconds``; the calibration on rank 0, None elsewhere.

    check: also measure sizes between the tables' and compare the predictions.
    """
    place = current_rank()
    sizes = tuple(sorted(SIZES + HELD_OUT)) if check else SIZES
    effort = Effort(
        rounds=30, warm_up=1, seconds_a_size=seconds / (len(sizes) * len(DTYPES) * len(GROUPS))
    )
    measured: list[tuple[_Group, list[Measurement]]] = []
    layout = Layout(tp=2, dp=NUM_RANKS // 2)
    with open_groups(layout, rank=place.rank, timeout_s=timeout_s) as groups:
        for group in GROUPS:
            communicator = groups.world if group.ranks == NUM_RANKS else groups.tp
            rows = []
            if place.rank < group.ranks:
                rows = _measure(group, communicator, sizes, effort)
            measured.append((group, rows))
            groups.world.all_gather(torch.zeros(1), site="calibrate")
    return _calibration(name, measured) if place.rank == 0 else None


def _measure(
    group: _Group, communicator: Communicator, sizes: Sequence[int], effort: Effort
) -> list[Measurement]:
    reducer = open_reducer_of(communicator, num_nodes=group.nodes, use_fabric=False)
    calls = {name: partial(reducer.all_reduce, algorithm=name) for name in group.algorithms}
    align = partial(reducer.all_reduce, algorithm=BACKEND if reducer.reason else "one_shot")
    benchmark = Benchmark(communicator, calls, align, torch.device("cpu"))
    return benchmark.run(sizes, DTYPES, effort)


def _calibration(name: str, measured: Sequence[tuple[_Group, list[Measurement]]]) -> Calibration:
    identity = fingerprint()
    source = f"weft calibrate, {describe(identity)}, torch {torch.__version__}"
    tables = [table for group, rows in measured for table in _tables(group, rows, source)]
    fabric = fit_fabric(
        name, tables, NUM_RANKS, identity, source, fitted=_fitting_cores(tables, identity["cores"])
    )
    errors = [
        error for group, rows in measured for row in rows for error in _error(fabric, group, row)
    ]
    return Calibration(fabric=fabric, errors=errors)


def _fitting_cores(tables: Sequence[MeasuredTable], cores: str) -> list[MeasuredTable]:
    """Tables of groups with a core for each rank; a waiting rank else costs a time slice."""
    found = [table for table in tables if table.ranks <= int(cores)]
    return found or list(tables)


def _tables(group: _Group, rows: Sequence[Measurement], source: str) -> list[MeasuredTable]:
    kept: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows:
        if row.bytes in SIZES:
            kept.setdefault((row.algorithm, row.dtype), []).append(row)
    return [
        MeasuredTable(
            algorithm=algorithm,
            ranks=group.ranks,
            nodes=group.nodes,
            dtype=dtype,
            bytes=tuple(row.bytes for row in of_kind),
            latency_us=tuple(round(row.median_us, 2) for row in of_kind),
            source=source,
        )
        for (algorithm, dtype), of_kind in kept.items()
    ]


def _error(fabric: Fabric, group: _Group, row: Measurement) -> list[float]:
    """Relative error of the prediction of a held-out size; nothing for the others."""
    table = fabric.table(row.algorithm, ranks=group.ranks, nodes=group.nodes, dtype=row.dtype)
    if row.bytes in SIZES or table is None:
        return []
    return [abs(float(table.interpolate(row.bytes)) / row.median_us - 1)]
