"""All-reduce latency in the manner of nccl-tests, algorithms side by side.

Every round calls every algorithm at every size once, so that what disturbs the machine
disturbs them alike. Every rank times every call from a common start; a call took as long as
its slowest rank. Results before and after are held against a float64 sum.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from weft.comm.communicator import Communicator
from weft.errors import CheckFailed
from weft.vocabulary.schedule import correction_factor

SCHEMA: Final = "weft.bench.allreduce/1"

AllReduce = Callable[[torch.Tensor], object]
"""Sums a tensor over the ranks, in place."""


class Run(Protocol):
    """One algorithm at one size and type, ready to be called by all ranks together."""

    def result(self) -> torch.Tensor:
        """What one call makes of the inputs."""

    def seconds(self) -> float:
        """How long a call takes on this rank."""


Runs = Callable[[torch.Tensor], Mapping[str, Run]]
"""The runs of every algorithm that can sum such an input; the same names on all ranks."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How often: rounds of one call an algorithm each, after warm-up rounds; seconds a size."""

    rounds: int = 40
    warm_up: int = 5
    seconds_a_size: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One algorithm at one size: times of its calls, each that of the slowest rank."""

    algorithm: str
    bytes: int
    count: int
    dtype: str
    rounds: int
    min_us: float
    median_us: float
    max_us: float
    algbw_gb_s: float
    busbw_gb_s: float
    wrong: int


@dataclass(frozen=True, slots=True)
class _Cell:
    """One size and type: this rank's input, the algorithms on it, seconds of their calls."""

    dtype: str
    source: torch.Tensor
    runs: Mapping[str, Run]
    seconds: dict[str, list[float]]


class HostRun:
    """An algorithm on CPU tensors, timed call by call from a common start."""

    def __init__(
        self, call: AllReduce, align: Callable[[], object], source: torch.Tensor, work: torch.Tensor
    ) -> None:
        """align: brings all ranks to one point; work: room to sum in."""
        self._call, self._align = call, align
        self._source, self._work = source, work

    def result(self) -> torch.Tensor:
        """See Run."""
        self._work.copy_(self._source)
        self._call(self._work)
        return self._work

    def seconds(self) -> float:
        """See Run."""
        self._work.copy_(self._source)
        self._align()
        start = time.perf_counter()
        self._call(self._work)
        return time.perf_counter() - start


def host_runs(algorithms: Mapping[str, AllReduce], align: AllReduce) -> Runs:
    """The runs of in-place all-reduces on CPU tensors; ``align`` is the cheapest of them."""
    token = torch.zeros(1)

    def runs(source: torch.Tensor) -> dict[str, Run]:
        work = torch.empty_like(source)
        return {
            name: HostRun(call, lambda: align(token), source, work)
            for name, call in algorithms.items()
        }

    return runs


class Benchmark:
    """Times the all-reduces of one group of ranks; every rank runs it alike."""

    def __init__(self, communicator: Communicator, runs: Runs, device: torch.device) -> None:
        self._communicator, self._device, self._runs = communicator, device, runs
        self._rank, self._size = communicator.rank, communicator.size

    def run(self, sizes: Sequence[int], dtypes: Sequence[str], effort: Effort) -> list[Measurement]:
        """Measure every size and type, all of them in every round; equal rows on every rank."""
        cells = [self._cell(size, dtype) for dtype in dtypes for size in sizes]
        wrong = [self._count_wrong(cell) for cell in cells]
        limit_s = effort.seconds_a_size * len(cells)
        start = time.monotonic()
        for turn in range(effort.warm_up + effort.rounds):
            for cell in cells:
                self._round(cell, turn, timed=turn >= effort.warm_up)
            if self._agree_to_stop(time.monotonic() - start > limit_s, turn, effort):
                break
        return [
            row
            for cell, before in zip(cells, wrong, strict=True)
            for row in self._rows(cell, before, self._count_wrong(cell))
        ]

    def _cell(self, size: int, dtype: str) -> _Cell:
        count = max(size // _dtype(dtype).itemsize, 1)
        source = self._inputs(count, dtype)[self._rank]
        runs = self._runs(source)
        return _Cell(dtype, source, runs, {name: [] for name in runs})

    def _round(self, cell: _Cell, turn: int, *, timed: bool) -> None:
        """Each round starts with another algorithm, so that none always follows the same one."""
        items = list(cell.runs.items())
        first = turn % len(items)
        for name, run in items[first:] + items[:first]:
            seconds = run.seconds()
            if timed:
                cell.seconds[name].append(seconds)

    def _rows(self, cell: _Cell, *wrong: list[int]) -> list[Measurement]:
        slowest = self._slowest_rank(cell.seconds)
        errors = self._sum([sum(counts) for counts in zip(*wrong, strict=True)])
        return [
            self._measurement(name, calls, cell.source.numel(), cell.dtype, count)
            for (name, calls), count in zip(slowest.items(), errors, strict=True)
        ]

    def _agree_to_stop(self, late: bool, turn: int, effort: Effort) -> bool:
        """Whether every rank stops here; asked every third round, and not before five."""
        if turn < effort.warm_up + 4 or (turn - effort.warm_up) % 3 != 1:
            return False
        return self._sum([int(late)])[0] > 0

    def _count_wrong(self, cell: _Cell) -> list[int]:
        """Elements of this rank's result that are off the float64 sum, for each algorithm."""
        inputs = self._inputs(cell.source.numel(), cell.dtype)
        exact = torch.stack([item.double() for item in inputs]).sum(0)
        tolerance = _tolerance(inputs, cell.dtype)
        return [
            int(((run.result().double() - exact).abs() > tolerance).sum())
            for run in cell.runs.values()
        ]

    def _inputs(self, count: int, dtype: str) -> list[torch.Tensor]:
        """One random tensor a rank; every rank can make them all."""
        generator = torch.Generator(self._device).manual_seed(count)
        return [
            torch.randn(count, generator=generator, device=self._device).to(_dtype(dtype))
            for _ in range(self._size)
        ]

    def _slowest_rank(self, times: dict[str, list[float]]) -> dict[str, list[float]]:
        mine = torch.tensor(list(times.values()), dtype=torch.float64, device=self._device)
        slowest = self._of_all_ranks(mine).amax(0)
        return dict(zip(times, slowest.tolist(), strict=True))

    def _sum(self, numbers: list[int]) -> list[int]:
        mine = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        total: list[int] = self._of_all_ranks(mine).sum(0).tolist()
        return total

    def _of_all_ranks(self, mine: torch.Tensor) -> torch.Tensor:
        """[...] of every rank as [ranks, ...]."""
        return self._communicator.all_gather(mine.unsqueeze(0), site="bench")

    def _measurement(
        self, name: str, calls: list[float], count: int, dtype: str, wrong: int
    ) -> Measurement:
        size = count * _dtype(dtype).itemsize
        median = statistics.median(calls)
        algbw = size / median / 1e9
        return Measurement(
            algorithm=name,
            bytes=size,
            count=count,
            dtype=dtype,
            rounds=len(calls),
            min_us=min(calls) * 1e6,
            median_us=median * 1e6,
            max_us=max(calls) * 1e6,
            algbw_gb_s=algbw,
            busbw_gb_s=algbw * correction_factor("all_reduce", self._size),
            wrong=wrong,
        )


def check_right(rows: Sequence[Mapping[str, Any]]) -> None:
    """CheckFailed where any element of any result was wrong."""
    bad = [row for row in rows if row["wrong"]]
    if bad:
        row = bad[0]
        raise CheckFailed(
            f"{len(bad)} of {len(rows)} measurements have wrong values, first {row['algorithm']} at "
            f"{row['bytes']} bytes of {row['dtype']}: {row['wrong']} elements"
        )


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _tolerance(inputs: Sequence[torch.Tensor], dtype: str) -> torch.Tensor:
    """Rounding that adding in any order and rounding each hop may cost, element by element."""
    magnitude = torch.stack([item.double().abs() for item in inputs]).sum(0)
    return magnitude * torch.finfo(_dtype(dtype)).eps * len(inputs)
