"""Recorder: every call through the door, with shapes, bytes, step, phase, site and times.

Recording is a transport put in front of the real one, so that nothing is paid
while it is off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from weft.allreduce.selection import AUTO
from weft.comm.transport import Transport
from weft.kernels.reducer import AddNorm, add_rms_norm
from weft.vocabulary.layout import GroupKind
from weft.vocabulary.schedule import Operation, Phase


@dataclass(slots=True)
class Call:
    """One call: times are seconds of this process's monotonic clock.

    On CUDA a call's times are those of its launch; the work itself is ordered on
    the stream. A call inside a replayed graph is launched with all the others of the graph:
    it begins and ends with the replay's launch, and is not ``timed``.
    fused: what was done in the same call (``residual_rms_norm``).
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
    fused: str | None = None
    timed: bool = True


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
    """Calls and steps in the order in which they happened.

    eager: whether steps have to run without graphs meanwhile, so that every call is timed.
    """

    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    phase: Phase = "other"
    eager: bool = False

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

    def replayed(self, calls: Sequence[Call]) -> None:
        """A captured graph ran again: its ``calls``, noted at the capture, happened in this step."""
        now, step = time.perf_counter(), len(self.steps) - 1
        self.calls += [
            replace(call, step=step, phase=self.phase, start_s=now, end_s=now, timed=False)
            for call in calls
        ]


class RecordingTransport:
    """Passes every call on to ``inner`` and writes it down."""

    def __init__(
        self, inner: Transport, recorder: Recorder, kind: GroupKind, group_size: int
    ) -> None:
        self.inner = inner
        self._recorder, self._kind, self._size = recorder, kind, group_size

    def all_reduce(
        self,
        tensor: torch.Tensor,
        out: torch.Tensor | None = None,
        *,
        algorithm: str = AUTO,
        site: str = "",
    ) -> torch.Tensor:
        start = time.perf_counter()
        result = self.inner.all_reduce(tensor, out, algorithm=algorithm, site=site)
        self._add("all_reduce", tensor, result, site, start)
        return result

    def all_reduce_residual_rms_norm(
        self,
        tensor: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        out: torch.Tensor | None = None,
        residual_out: torch.Tensor | None = None,
        *,
        site: str = "",
        add_norm: AddNorm = add_rms_norm,
    ) -> torch.Tensor:
        start = time.perf_counter()
        result = self.inner.all_reduce_residual_rms_norm(
            tensor, residual, weight, epsilon, out, residual_out, site=site, add_norm=add_norm
        )
        self._add("all_reduce", tensor, result, site, start, "residual_rms_norm")
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
        fused: str | None = None,
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
                fused,
            )
        )
