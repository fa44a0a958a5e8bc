"""CUDA graphs of steps: captured once for each of some sizes, replayed for every step of a size.

A graph reads static buffers, which :mod:`weft.engine.graph_inputs` fills. The largest size is
captured first and lends its memory to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, Generic, TypeVar

import torch

from weft.comm.groups import ProcessGroups
from weft.comm.recorder import Call

BATCHES: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Sequences of a step of decodes."""
ROWS: Final = (32, 64, 96, 128, 192, 256, 384, 512, 640, 768, 1024)
"""Token rows of a step with prompts; longer ones keep the device busy while they are launched."""

Output = TypeVar("Output")


class Replay(IntEnum):
    """Which graphs a step takes; replicas that step together all take the last that one names."""

    DECODES = 0
    ROWS = 1
    NONE = 2


class StepGraphs(Generic[Output]):
    """``work(size)`` captured for every size, with the calls that it makes of ``groups``."""

    def __init__(
        self, work: Callable[[int], Output], sizes: Sequence[int], groups: ProcessGroups
    ) -> None:
        self._sizes, self._groups = sorted(sizes), groups
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Output, list[Call]]] = {}
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        for size in reversed(self._sizes):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work(size)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with (
                groups.recording() as noted,
                torch.cuda.graph(
                    graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                ),
            ):
                outputs = work(size)
            self._graphs[size] = graph, outputs, noted.calls
        torch.cuda.synchronize()

    def size_for(self, count: int) -> int | None:
        """The smallest size that holds ``count``, if there is one."""
        return next((size for size in self._sizes if size >= count), None)

    def replay(self, size: int) -> Output:
        """Run the step; the outputs are static and hold until the next replay."""
        graph, outputs, calls = self._graphs[size]
        graph.replay()
        self._groups.replayed(calls)
        return outputs


def sizes_up_to(most: int, sizes: Sequence[int], *, exact: bool = False) -> list[int]:
    """Those of ``sizes`` below ``most`` and one that holds it (``exact``: itself) if there is one."""
    below = {size for size in sizes if size < most}
    above = [most] if exact else [size for size in sizes if size >= most]
    return sorted({*below, *above[:1]} if most <= sizes[-1] else below)
