"""Timing collectives whose calls return before their work is done."""

from __future__ import annotations

import time
from types import SimpleNamespace

import torch

from weft.comm.communicator import Communicator
from weft.comm.recorder import Recorder, RecordingTransport
from weft.serve.engine_client import EngineStats, StepTimes
from weft.serve.metrics import Metrics
from weft.serve.step_profile import fenced, share_of, steps_of

COMPUTE_S, COLLECTIVE_S = 0.03, 0.01


class Device:
    """Runs what is launched later, in order: when it is waited for."""

    def __init__(self) -> None:
        self.todo: list[float] = []

    def wait(self) -> None:
        work, self.todo = self.todo, []
        time.sleep(sum(work))


class Launching:
    """A transport that only launches."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def all_reduce(self, tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        self.device.todo.append(COLLECTIVE_S)
        return tensor


def test_a_fenced_call_is_timed_with_its_work_and_nothing_else():
    device = Device()
    plain = Launching(device)
    group = Communicator(kind="tp", ranks=(0, 1), rank=0, transport=plain)
    groups = SimpleNamespace(communicators=(group,))
    recorder = Recorder()
    with fenced(groups, device.wait):
        group.transport = RecordingTransport(group.transport, recorder, "tp", 2)
        with fenced(groups, device.wait), recorder.step("decode", 1):
            for _ in range(2):
                device.todo.append(COMPUTE_S)
                group.all_reduce(torch.zeros(1), "here")
    assert group.transport is plain
    (step,) = steps_of(recorder)
    assert 2 * COLLECTIVE_S <= step.in_calls_s["all_reduce"] < 2 * COLLECTIVE_S + COMPUTE_S
    assert step.end_s - step.start_s >= 2 * (COMPUTE_S + COLLECTIVE_S)


def step(length_s: float, **in_calls_s: float) -> StepTimes:
    return StepTimes(phase="decode", start_s=1.0, end_s=1.0 + length_s, in_calls_s=in_calls_s)


def test_the_share_is_of_all_steps():
    assert share_of([]) is None
    assert share_of([step(1.0), step(1.0, all_reduce=0.25, send=0.25)]) == 0.25


def test_a_share_that_nobody_measured_has_no_sample():
    engine = SimpleNamespace(stats=EngineStats(), trouble=None)
    metrics = Metrics(engine)
    text = metrics.text().decode()
    assert "# TYPE weft_engine_communication_share gauge\n" in text
    assert "nan" not in text.lower()
    assert "\nweft_engine_communication_share " not in text
    engine.stats = EngineStats(communication_share=0.25)
    assert "\nweft_engine_communication_share 0.25\n" in metrics.text().decode()
