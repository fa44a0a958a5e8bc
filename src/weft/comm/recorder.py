"""Recorder: every call through the door, with shapes, bytes, step, phase, site and times.

Recording is a transport put in front of the real one, so that nothing is paid
while it is off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch

from weft.kernels.exchange import dispatched_shape
from weft.vocabulary.layout import GroupKind
from weft.vocabulary.routes import Routes
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
class RecordedStep:
    """One engine step of this rank."""

    index: int
    phase: Phase
    num_tokens: int
    start_s: float
    end_s: float = 0.0
    label: str = ""


@dataclass
class Recorder:
    """Calls and steps in the order in which they happened.

    eager: whether steps have to run without graphs meanwhile, so that every call is timed.
    """

    calls: list[Call] = field(default_factory=list)
    steps: list[RecordedStep] = field(default_factory=list)
    phase: Phase = "other"
    eager: bool = False

    @contextmanager
    def step(self, phase: Phase, num_tokens: int, label: str = "step") -> Iterator[None]:
        """Calls inside belong to one step of ``phase``; torch's profiler sees it by its ``label``."""
        step = RecordedStep(len(self.steps), phase, num_tokens, time.perf_counter(), label=label)
        self.steps.append(step)
        self.phase = phase
        try:
            with torch.profiler.record_function(label):
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
    """Passes every call on to ``inner`` (a transport) and writes it down."""

    def __init__(self, inner: Any, recorder: Recorder, kind: GroupKind, group_size: int) -> None:
        self.inner = inner
        self._recorder, self._kind, self._size = recorder, kind, group_size

    def __getattr__(self, name: str) -> Any:
        op, _, fused = name.partition("_residual_")
        called = cast("Operation", op), f"residual_{fused}" if fused else None
        return partial(self._call, *called, getattr(self.inner, name))

    def dispatch(self, rows: torch.Tensor, routes: Routes, *, site: str) -> Any:
        """An all-to-all of bytes: as many as there is room for."""
        function = partial(self.inner.dispatch, rows, routes, site=site)
        return self._exchange(function, dispatched_shape(rows, routes, self._size), "uint8", site)

    def combine(self, tensor: torch.Tensor, routes: Routes, *, site: str) -> Any:
        """The same back: room for a sum of every row at every rank."""
        function = partial(self.inner.combine, tensor, routes, site=site)
        return self._exchange(function, tuple(tensor.shape), _name(tensor.dtype), site)

    def _exchange(
        self, function: Callable[[], Any], shape: tuple[int, ...], dtype: str, site: str
    ) -> Any:
        start_s = time.perf_counter()
        result = function()
        self._note("all_to_all", None, shape, shape, dtype, site, start_s)
        return result

    def _call(
        self, op: Operation, fused: str | None, function: Callable[..., Any],
        tensor: torch.Tensor, *args: Any, **options: Any,
    ) -> Any:  # fmt: skip
        start_s, shape = time.perf_counter(), tuple(tensor.shape)
        result = function(tensor, *args, **options)
        output = tensor if op == "send" else result
        there = None if output is None else tuple(output.shape)
        site = options["site"] if "site" in options else args[-1]
        self._note(op, fused, shape, there, _name(tensor.dtype), site, start_s)
        return result

    def _note(
        self, op: Operation, fused: str | None, input_shape: tuple[int, ...],
        output_shape: tuple[int, ...] | None, dtype: str, site: str, start_s: float,
    ) -> None:  # fmt: skip
        recorder = self._recorder
        call = Call(
            op=op,
            group=self._kind,
            group_size=self._size,
            input_shape=input_shape,
            output_shape=output_shape,
            dtype=dtype,
            site=site,
            step=len(recorder.steps) - 1,
            phase=recorder.phase,
            start_s=start_s,
            end_s=time.perf_counter(),
            fused=fused,
        )
        recorder.calls.append(call)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
