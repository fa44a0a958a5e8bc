"""The leader's own profiler: every step and the time it spent in collectives."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from weft.comm.groups import ProcessGroups
from weft.comm.recorder import Recorder
from weft.engine.engine import Engine
from weft.serve.engine_client import StepTimes
from weft.tracing.trace_file import traced


class StepProfile:
    """Records from its making until ``end``. Steps run eagerly meanwhile.

    On CUDA the device is waited for before and after each collective: a call returns at its
    launch, and would be timed without its work. With a ``folder`` the rank leaves its trace there
    instead, of steps as they always run on CUDA.
    """

    def __init__(self, engine: Engine, groups: ProcessGroups, folder: Path | None = None) -> None:
        self._engine = engine
        self._stack = ExitStack()
        if folder is None:
            self._recorder = self._record(groups)
        else:
            self._recorder = self._stack.enter_context(traced(groups, folder))
        engine.recorder = self._recorder

    def _record(self, groups: ProcessGroups) -> Recorder:
        if groups.device.type != "cuda":
            return self._stack.enter_context(groups.recording(eager=True))
        self._stack.enter_context(fenced(groups, torch.cuda.synchronize))
        recorder = self._stack.enter_context(groups.recording(eager=True))
        self._stack.enter_context(fenced(groups, torch.cuda.synchronize))
        return recorder

    def end(self) -> tuple[StepTimes, ...]:
        """Stop recording and give every step with at least one row."""
        self._engine.recorder = None
        self._stack.close()
        return steps_of(self._recorder)


@contextmanager
def fenced(groups: ProcessGroups, wait: Callable[[], None]) -> Iterator[None]:
    """``wait`` before and after every call of every group while the context is open."""
    plain = [one.transport for one in groups.communicators]
    for one in groups.communicators:
        one.transport = _Fenced(one.transport, wait)  # type: ignore[assignment]
    try:
        yield
    finally:
        for one, transport in zip(groups.communicators, plain, strict=True):
            one.transport = transport


class _Fenced:
    """A transport whose calls are done when they return."""

    def __init__(self, inner: Any, wait: Callable[[], None]) -> None:
        self._inner, self._wait = inner, wait

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._inner, name)

        def waited(*arguments: Any, **options: Any) -> Any:
            self._wait()
            result = call(*arguments, **options)
            self._wait()
            return result

        return waited


def share_of(steps: Sequence[StepTimes]) -> float | None:
    """Share of the steps' time inside collectives; None without steps."""
    spent_s = sum(step.end_s - step.start_s for step in steps)
    inside_s = sum(seconds for step in steps for seconds in step.in_calls_s.values())
    return inside_s / spent_s if spent_s > 0 else None


def steps_of(recorder: Recorder) -> tuple[StepTimes, ...]:
    """Each recorded step with its seconds in calls by operation."""
    epoch_s = time.time() - time.perf_counter()
    in_calls: list[Counter[str]] = [Counter() for _ in recorder.steps]
    for call in recorder.calls:
        if call.step >= 0:
            in_calls[call.step][call.op] += call.end_s - call.start_s  # type: ignore[assignment]
    return tuple(
        StepTimes(
            phase=step.phase,
            start_s=step.start_s + epoch_s,
            end_s=step.end_s + epoch_s,
            in_calls_s=dict(spent),
        )
        for step, spent in zip(recorder.steps, in_calls, strict=True)
    )
