"""All-reduce latency in the manner of nccl-tests, algorithms side by side.

The calls of all algorithms at one size are interleaved, so that what disturbs the machine
disturbs them alike. Every rank times every call from a common start; a call took as long as
its slowest rank. Each round's result is held against a float64 sum.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
import torch.distributed as dist

from weft.errors import CheckFailed
from weft.vocabulary.schedule import correction_factor

SCHEMA: Final = "weft.bench.allreduce/1"

AllReduce = Callable[[torch.Tensor], object]
"""Sums a tensor over the ranks, in place."""


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


class Benchmark:
    """Times the all-reduces of one group of ranks; every rank runs it alike."""

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        algorithms: Mapping[str, AllReduce],
        align: AllReduce,
        device: torch.device,
    ) -> None:
        self._group, self._algorithms, self._align = group, algorithms, align
        self._device = device
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._token = torch.zeros(1, device=device)

    def run(
        self, sizes: Sequence[int], dtypes: Sequence[str], effort: Effort
    ) -> Iterator[Measurement]:
        """Measure every size and type; the same rows on every rank."""
        for dtype in dtypes:
            for size in sizes:
                yield from self._measure(max(size // _dtype(dtype).itemsize, 1), dtype, effort)

    def _measure(self, count: int, dtype: str, effort: Effort) -> Iterator[Measurement]:
        inputs = self._inputs(count, dtype)
        source = inputs[self._rank].to(self._device)
        exact = torch.stack([item.double() for item in inputs]).sum(0)
        tolerance = _tolerance(inputs, dtype)
        times: dict[str, list[float]] = {name: [] for name in self._algorithms}
        wrong = dict.fromkeys(times, 0)
        work = torch.empty_like(source)
        start = time.monotonic()
        for turn in range(effort.warm_up + effort.rounds):
            for name, call in self._algorithms.items():
                work.copy_(source)
                seconds = self._time(call, work)
                if turn >= effort.warm_up:
                    times[name].append(seconds)
            if turn in (0, effort.warm_up):
                self._count_wrong(source, exact, tolerance, wrong)
            if self._agree_to_stop(time.monotonic() - start > effort.seconds_a_size, turn, effort):
                break
        slowest = self._slowest_rank(times)
        totals = self._sum(list(wrong.values()))
        for (name, calls), errors in zip(slowest.items(), totals, strict=True):
            yield self._measurement(name, calls, count, dtype, errors)

    def _time(self, call: AllReduce, work: torch.Tensor) -> float:
        self._align(self._token)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        call(work)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def _agree_to_stop(self, late: bool, turn: int, effort: Effort) -> bool:
        """Whether every rank stops here; asked every third round, and not before five."""
        if turn < effort.warm_up + 4 or (turn - effort.warm_up) % 3 != 1:
            return False
        return self._sum([int(late)])[0] > 0

    def _count_wrong(
        self,
        source: torch.Tensor,
        exact: torch.Tensor,
        tolerance: torch.Tensor,
        wrong: dict[str, int],
    ) -> None:
        for name, call in self._algorithms.items():
            work = source.clone()
            call(work)
            off = (work.cpu().double() - exact).abs() > tolerance
            wrong[name] += int(off.sum())

    def _inputs(self, count: int, dtype: str) -> list[torch.Tensor]:
        """One random tensor a rank; every rank can make them all."""
        generator = torch.Generator().manual_seed(count)
        return [
            torch.randn(count, generator=generator).to(_dtype(dtype)) for _ in range(self._size)
        ]

    def _slowest_rank(self, times: dict[str, list[float]]) -> dict[str, list[float]]:
        mine = torch.tensor(list(times.values()), dtype=torch.float64, device=self._device)
        dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=self._group)
        return dict(zip(times, mine.tolist(), strict=True))

    def _sum(self, numbers: list[int]) -> list[int]:
        total = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        dist.all_reduce(total, group=self._group)
        result: list[int] = total.tolist()
        return result

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


def document(rows: Sequence[Measurement], machine: dict[str, Any]) -> dict[str, Any]:
    """The ``weft.bench.allreduce/1`` object."""
    return {"schema": SCHEMA, "machine": machine, "rows": [asdict(row) for row in rows]}


def check_right(rows: Sequence[Measurement]) -> None:
    """CheckFailed where any element of any result was wrong."""
    bad = [row for row in rows if row.wrong]
    if bad:
        row = bad[0]
        raise CheckFailed(
            f"{len(bad)} of {len(rows)} measurements have wrong values, first {row.algorithm} at "
            f"{row.bytes} bytes of {row.dtype}: {row.wrong} elements"
        )


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _tolerance(inputs: Sequence[torch.Tensor], dtype: str) -> torch.Tensor:
    """Rounding that adding in any order and rounding each hop may cost, element by element."""
    magnitude = torch.stack([item.double().abs() for item in inputs]).sum(0)
    return magnitude * torch.finfo(_dtype(dtype)).eps * len(inputs)
