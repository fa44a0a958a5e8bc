"""CUDA graphs of the decode step, one a batch bucket.

A graph reads static buffers: the sequences' rows and lengths and, behind a pipeline
boundary, hidden states. The token ids come from the table of last sampled ids, so a step
can be launched before the ids of the one in front are known here. The largest bucket is
captured first and lends its memory to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch

from weft.comm.groups import ProcessGroups
from weft.comm.recorder import Call
from weft.engine.stage_output import StageOutput
from weft.engine.step import Step
from weft.models.decoder import Boundary

BUCKETS: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)


class DecodeBuffers:
    """What the graphs read: rows and lengths [max_batch] int32, received hidden states."""

    def __init__(
        self,
        max_batch: int,
        hidden_size: int,
        *,
        num_received: int,
        spare_row: int,
        like: torch.Tensor,
    ) -> None:
        self._spare_row = spare_row
        idle = torch.tensor([spare_row, 1], dtype=torch.int32).repeat_interleave(max_batch)
        self._rows_and_lengths = idle.to(like.device)
        self._received = [like.new_zeros((max_batch, hidden_size)) for _ in range(num_received)]

    def fill(self, step: Step, bucket: int, received: Boundary | None) -> None:
        """Enter a step; places past its batch belong to nobody and have length 1."""
        count = len(step.rows)
        values = np.empty(2 * bucket, dtype=np.int32)
        values[:count], values[count:bucket] = step.rows, self._spare_row
        values[bucket : bucket + count], values[bucket + count :] = step.context_lengths, 1
        staged = torch.from_numpy(values).pin_memory()
        self._rows_and_lengths[: 2 * bucket].copy_(staged, non_blocking=True)
        if received is not None:
            for buffer, tensor in zip(
                self._received, (received.hidden, received.residual), strict=False
            ):
                assert tensor is not None
                buffer[:count].copy_(tensor)

    def rows_and_lengths(self, bucket: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._rows_and_lengths[:bucket], self._rows_and_lengths[bucket : 2 * bucket]

    def received(self, bucket: int) -> Boundary | None:
        """The hidden states that came over the boundary; None on the first stage."""
        parts = [buffer[:bucket] for buffer in self._received]
        if not parts:
            return None
        return Boundary(hidden=parts[0], residual=parts[1] if len(parts) > 1 else None)


class DecodeGraphs:
    """``work(bucket)`` captured for every bucket, with the calls that it makes of ``groups``."""

    def __init__(
        self, work: Callable[[int], StageOutput], buckets: Sequence[int], groups: ProcessGroups
    ) -> None:
        self._buckets, self._groups = sorted(buckets), groups
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, StageOutput, list[Call]]] = {}
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        for bucket in reversed(self._buckets):
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work(bucket)
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with (
                groups.recording() as noted,
                torch.cuda.graph(
                    graph, pool=pool, stream=stream, capture_error_mode="thread_local"
                ),
            ):
                outputs = work(bucket)
            self._graphs[bucket] = graph, outputs, noted.calls
        torch.cuda.synchronize()

    def bucket_for(self, batch: int) -> int | None:
        """The smallest bucket that holds ``batch`` sequences, if there is one."""
        return next((bucket for bucket in self._buckets if bucket >= batch), None)

    def replay(self, bucket: int) -> StageOutput:
        """Run the step; the outputs are static and hold until the next replay."""
        graph, outputs, calls = self._graphs[bucket]
        graph.replay()
        self._groups.replayed(calls)
        return outputs
