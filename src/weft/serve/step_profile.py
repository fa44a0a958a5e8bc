"""The leader's own profiler: every step and the time it spent in collectives."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack

from weft.comm.groups import ProcessGroups
from weft.comm.recorder import Recorder
from weft.engine.engine import Engine
from weft.serve.engine_client import StepTimes


class StepProfile:
    """Records from its making until ``end``. Steps run eagerly meanwhile."""

    def __init__(self, engine: Engine, groups: ProcessGroups) -> None:
        self._engine = engine
        self._stack = ExitStack()
        self._recorder = self._stack.enter_context(groups.recording())
        engine.recorder = self._recorder

    def end(self) -> tuple[StepTimes, ...]:
        """Stop recording and give every step with at least one row."""
        self._engine.recorder = None
        self._stack.close()
        return steps_of(self._recorder)


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
