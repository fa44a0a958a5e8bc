"""Recorder: every call through the door, with shapes, bytes, step, phase, site and times.

Recording is a transport put in front of the real one, so that nothing is paid
while it is off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from weft.comm.transport import Transport
from weft.vocabulary.layout import GroupKind
from weft.vocabulary.schedule import Operation, Phase


@dataclass(slots=True)
class Call:
    """One call: times are seconds of this process's monotonic clock.

    On CUDA a call's times are those of its launch; the work itself is ordered on
    the stream.
    """

    op: Operation
    group: GroupKind
    group_size: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...] | None
    dtype: str
    site: str
    step: int
    phase: Phase
    start_s: float
    end_s: float


@dataclass(slots=True)
class Step:
    """One engine step of this rank."""

    index: int
    phase: Phase
    num_tokens: int
    start_s: float
    end_s: float = 0.0


@dataclass
class Recorder:
    """Calls and steps in the order in which they happened."""

    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    phase: Phase = "other"

    @contextmanager
    def step(self, phase: Phase, num_tokens: int) -> Iterator[None]:
        """Calls inside belong to one step of ``phase``."""
        step = Step(len(self.steps), phase, num_tokens, time.perf_counter())
        self.steps.append(step)
        self.phase = phase
        try:
            yield
        finally:
            step.end_s = time.perf_counter()
            self.phase = "other"


class RecordingTransport:
    """Passes every call on to ``inner`` and writes it down."""

    def __init__(
        self, inner: Transport, recorder: Recorder, kind: GroupKind, group_size: int
    ) -> None:
        self.inner = inner
        self._recorder, self._kind, self._size = recorder, kind, group_size

    def all_reduce(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        start = time.perf_counter()
        result = self.inner.all_reduce(tensor, site)
        self._add("all_reduce", tensor, result, site, start)
        return result

    def all_gather(self, tensor: torch.Tensor, dim: int, site: str) -> torch.Tensor:
        start = time.perf_counter()
        result = self.inner.all_gather(tensor, dim, site)
        self._add("all_gather", tensor, result, site, start)
        return result

    def reduce_scatter(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        start = time.perf_counter()
        result = self.inner.reduce_scatter(tensor, site)
        self._add("reduce_scatter", tensor, result, site, start)
        return result

    def gather(self, tensor: torch.Tensor, dst: int, site: str) -> torch.Tensor | None:
        start = time.perf_counter()
        result = self.inner.gather(tensor, dst, site)
        self._add("gather", tensor, result, site, start)
        return result

    def broadcast(self, tensor: torch.Tensor, src: int, site: str) -> torch.Tensor:
        start = time.perf_counter()
        result = self.inner.broadcast(tensor, src, site)
        self._add("broadcast", tensor, result, site, start)
        return result

    def send(self, tensor: torch.Tensor, dst: int, site: str) -> None:
        start = time.perf_counter()
        self.inner.send(tensor, dst, site)
        self._add("send", tensor, tensor, site, start)

    def recv(self, tensor: torch.Tensor, src: int, site: str) -> torch.Tensor:
        start = time.perf_counter()
        result = self.inner.recv(tensor, src, site)
        self._add("recv", tensor, result, site, start)
        return result

    def all_to_all(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        start = time.perf_counter()
        result = self.inner.all_to_all(tensor, site)
        self._add("all_to_all", tensor, result, site, start)
        return result

    def _add(
        self,
        op: Operation,
        tensor: torch.Tensor,
        result: torch.Tensor | None,
        site: str,
        start_s: float,
    ) -> None:
        recorder = self._recorder
        recorder.calls.append(
            Call(
                op,
                self._kind,
                self._size,
                tuple(tensor.shape),
                None if result is None else tuple(result.shape),
                str(tensor.dtype).removeprefix("torch."),
                site,
                len(recorder.steps) - 1,
                recorder.phase,
                start_s,
                time.perf_counter(),
            )
        )
