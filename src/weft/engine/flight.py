"""Flight: the steps on their way through the pipeline stages.

One tick a call: this rank's stage computes the step that entered the pipeline
``stage`` ticks ago, the last stage's ids go to all stages, and what the stage computed
goes to the next one. All ranks do this in the same order, so nothing can block for
good. With one stage a tick is a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from weft.comm.groups import ProcessGroups
from weft.comm.recorder import Recorder
from weft.engine.failure import Attempt, Attempts
from weft.engine.runner import StageRunner
from weft.engine.stage_output import StageOutput
from weft.engine.step import Step


@dataclass(kw_only=True)
class Launched:
    """A step on its way."""

    step: Step
    _ids: torch.Tensor | None = None
    _logprobs: torch.Tensor | None = None
    _ready: torch.cuda.Event | None = None

    def keep(self, ids: torch.Tensor, logprobs: torch.Tensor | None) -> None:
        """Start to bring the sampled ids [N], and log-probabilities if any, to the host."""
        self._ids = _to_host(ids)
        if logprobs is not None:
            self._logprobs = _to_host(logprobs)
        if ids.device.type == "cuda":
            self._ready = torch.cuda.Event()
            self._ready.record()

    def read_ids(self) -> list[int]:
        """The ids, once the step has left the pipeline; waits for the device."""
        if self._ready is not None:
            self._ready.synchronize()
        assert self._ids is not None
        ids: list[int] = self._ids.tolist()
        return ids

    def read_logprobs(self) -> list[list[float]]:
        """The rows of ``LogprobReader.read``, after ``read_ids``."""
        return [] if self._logprobs is None else self._logprobs.tolist()


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "cuda":
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


class Flight:
    """A window over the last steps that entered, one a tick; None where there was none."""

    def __init__(
        self, runner: StageRunner, groups: ProcessGroups, attempt: Attempt | None = None
    ) -> None:
        """``attempt`` runs the work of one rank; without it as ``Attempts`` does."""
        self._runner, self._stage, num_stages = runner, groups.stage, groups.layout.pp
        self._attempt = attempt or Attempts(groups).attempt
        self._window: deque[Launched | None] = deque([None] * num_stages, maxlen=num_stages)

    @property
    def is_empty(self) -> bool:
        return not any(list(self._window)[:-1])

    def tick(self, new: Launched | None, recorder: Recorder | None) -> Launched | None:
        """Let ``new`` enter; returns the step that has left the last stage, if any."""
        self._window.appendleft(new)
        mine, leaving = self._window[self._stage], self._window[-1]
        output = StageOutput()
        with _step(recorder, mine):
            if mine is not None:
                output = self._compute(mine.step, eager=recorder is not None and recorder.eager)
            if leaving is not None:
                with _phase(recorder, leaving):
                    self._choose(leaving, output)
            if output.boundary is not None:
                self._runner.send(output.boundary)
        return leaving

    def _compute(self, step: Step, *, eager: bool) -> StageOutput:
        received = self._runner.receive(step)
        output = self._attempt(
            step.chunks, lambda: self._runner.forward(step, received, eager=eager)
        )
        if output is None or step.has_failed:
            return self._runner.no_numbers(step)
        return output

    def _choose(self, leaving: Launched, output: StageOutput) -> None:
        """Ids of the step that leaves; ``output`` is its own on the last stage, empty of logits elsewhere."""
        runner, step = self._runner, leaving.step
        attempt = partial(self._attempt, step.sampling)
        chosen = attempt(lambda: runner.choose(output, step))
        ids = runner.share(chosen, step)
        if not (output.is_booked and chosen is output.ids):
            runner.book(ids, step)
        found = attempt(lambda: runner.logprobs(output.logits, ids, step))
        leaving.keep(ids, runner.share_logprobs(found, step))


@contextmanager
def _step(recorder: Recorder | None, launched: Launched | None) -> Iterator[None]:
    """The step for our own recorder, or by its label for a profiler alone (once: it is counted)."""
    with ExitStack() as stack:
        if launched is not None and recorder is not None:
            step = launched.step
            stack.enter_context(recorder.step(step.phase, step.num_tokens, step.label))
        elif launched is not None and torch.autograd.profiler._is_profiler_enabled:  # noqa: SLF001 - no other way to ask
            stack.enter_context(torch.profiler.record_function(launched.step.label))
        yield


@contextmanager
def _phase(recorder: Recorder | None, launched: Launched) -> Iterator[None]:
    """Calls inside belong to the phase of ``launched``, which another stage computed."""
    if recorder is None:
        yield
        return
    before, recorder.phase = recorder.phase, launched.step.phase
    try:
        yield
    finally:
        recorder.phase = before
