"""All-reduces on GPUs, timed inside captured graphs or launched one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from weft.bench.allreduce import Run, Runs
from weft.kernels.contenders import Contender, Job

MODES: Final = ("graph", "eager")
REPLAYS: Final = 4  # timed in a row, after one that is not
EAGER_CALLS: Final = 20


class GraphRun:
    """Calls inside one captured graph; a replay's time over the number of calls."""

    def __init__(self, job: Job, source: torch.Tensor, stream: torch.cuda.Stream) -> None:
        self._job, self._source, self._stream = job, source, stream
        self._calls = calls_in_a_graph(source.nbytes)
        self._events = _events(REPLAYS + 1)
        self._graph = self._capture()

    def _capture(self) -> torch.cuda.CUDAGraph:
        with torch.cuda.stream(self._stream):
            self._job.call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            for _ in range(self._calls):
                self._job.call()
            graph.capture_end()
        return graph

    def result(self) -> torch.Tensor:
        """See Run."""
        return one_result(self._job, self._source, self._stream)

    def seconds(self) -> float:
        """A replay that is not timed brings all ranks together, then each is timed by itself."""
        with torch.cuda.stream(self._stream):
            for start, end in self._events:
                self._job.fresh(self._source)
                start.record()
                self._graph.replay()
                end.record()
        self._stream.synchronize()
        times = [start.elapsed_time(end) for start, end in self._events[1:]]
        return float(sum(times)) / len(times) / self._calls / 1e3


class EagerRun:
    """Calls launched from Python one after the other."""

    def __init__(self, job: Job, source: torch.Tensor, stream: torch.cuda.Stream) -> None:
        self._job, self._source, self._stream = job, source, stream
        self._events = _events(1)

    def result(self) -> torch.Tensor:
        """See Run."""
        return one_result(self._job, self._source, self._stream)

    def seconds(self) -> float:
        """A few calls that are not timed bring all ranks together."""
        ((start, end),) = self._events
        with torch.cuda.stream(self._stream):
            self._job.fresh(self._source)
            for _ in range(3):
                self._job.call()
            start.record()
            for _ in range(EAGER_CALLS):
                self._job.call()
            end.record()
        self._stream.synchronize()
        return float(start.elapsed_time(end)) / EAGER_CALLS / 1e3


def device_runs(contenders: Sequence[Contender], mode: str) -> Runs:
    """The runs of ``contenders``; mode: one of MODES."""
    kind: Callable[[Job, torch.Tensor, torch.cuda.Stream], Run]
    kind = GraphRun if mode == "graph" else EagerRun
    stream = torch.cuda.Stream()

    def runs(source: torch.Tensor) -> dict[str, Run]:
        torch.cuda.synchronize()
        jobs = {contender.name: contender.prepare(source) for contender in contenders}
        return {name: kind(job, source, stream) for name, job in jobs.items() if job is not None}

    return runs


def one_result(job: Job, source: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """The sum that one call leaves, ready for any stream."""
    with torch.cuda.stream(stream):
        job.fresh(source)
        result = job.call().clone()
    torch.cuda.synchronize()
    return result


def calls_in_a_graph(num_bytes: int) -> int:
    """Fewer where one call takes long."""
    return 40 if num_bytes <= 1 << 20 else 12 if num_bytes <= 8 << 20 else 4


def _events(count: int) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
    return [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(count)
    ]
