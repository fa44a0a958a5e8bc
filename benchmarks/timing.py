"""Timing of collectives on GPUs: inside captured graphs and eager, worst rank, median."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.distributed as dist

CALLS = 40
REPLAYS = 15


def graph_us(call: Callable[[], object], cpu: dist.ProcessGroup, calls: int = CALLS) -> float:
    """µs a call inside a graph of ``calls`` calls: median of replays, max over the ranks."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        for _ in range(calls):
            call()
        graph.capture_end()
        dist.barrier(cpu)
        times = [_timed(graph.replay) for _ in range(REPLAYS + 3)][3:]
    return worst(statistics.median(times) * 1000 / calls, cpu)


def eager_us(call: Callable[[], object], cpu: dist.ProcessGroup, calls: int = 100) -> float:
    """µs a call launched from Python one after the other, max over the ranks."""
    for _ in range(10):
        call()
    torch.cuda.synchronize()
    dist.barrier(cpu)

    def loop() -> None:
        for _ in range(calls):
            call()

    return worst(statistics.median(_timed(loop) for _ in range(5)) * 1000 / calls, cpu)


def worst(value: float, cpu: dist.ProcessGroup) -> float:
    """The largest value over the ranks, rounded to 10 ns."""
    values: list[float] = [0.0] * dist.get_world_size(cpu)
    dist.all_gather_object(values, value, group=cpu)
    return round(max(values), 2)


def _timed(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def machine(commit: str) -> dict[str, object]:
    """What the figures were measured with."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "num_gpus": torch.cuda.device_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(str(part) for part in torch.cuda.nccl.version()),
        "commit": commit,
        "method": f"{CALLS} calls a captured graph, median of {REPLAYS} replays, max over ranks",
    }
