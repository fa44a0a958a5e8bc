"""The parts of a step's time, on recordings made by hand."""

from __future__ import annotations

import pytest

from weft.study.breakdown import RankRecord, TimedCall, TimedStep, breakdown, waiting_s
from weft.vocabulary.layout import Layout


def call(op, group, start, end, step=0):
    return TimedCall(op=op, group=group, step=step, start_s=start, end_s=end)


def test_the_last_rank_to_come_does_not_wait():
    steps = [TimedStep(phase="decode", start_s=0.0, end_s=10.0)]
    records = [
        RankRecord(rank=0, steps=steps, calls=[call("all_reduce", "tp", 1.0, 6.0)]),
        RankRecord(rank=1, steps=steps, calls=[call("all_reduce", "tp", 4.0, 6.0)]),
    ]
    assert waiting_s(records, Layout(tp=2)) == {0: [3.0], 1: [0.0]}
    time = breakdown(records, Layout(tp=2))["decode"]
    assert time.wait_ms == pytest.approx(1500)
    assert time.communication_ms == pytest.approx(2000)
    assert time.compute_ms == pytest.approx(6500)
    assert time.total_ms == pytest.approx(10000)


def test_a_receive_waits_for_its_send_and_a_send_for_nobody():
    steps = [
        TimedStep(phase="decode", start_s=0.0, end_s=4.0),
        TimedStep(phase="decode", start_s=5.0, end_s=9.0),
    ]
    sends = [call("send", "pp", 2.0, 3.0), call("send", "pp", 7.0, 8.0, step=1)]
    receives = [call("recv", "pp", 0.0, 3.0), call("recv", "pp", 7.5, 8.0, step=1)]
    records = [
        RankRecord(rank=0, steps=steps, calls=sends),
        RankRecord(rank=1, steps=steps, calls=receives),
    ]
    assert waiting_s(records, Layout(pp=2)) == {0: [0.0, 0.0], 1: [2.0, 0.0]}
    time = breakdown(records, Layout(pp=2))["decode"]
    assert time.num_steps == 2
    assert time.idle_ms == pytest.approx(1000)


def test_groups_are_kept_apart():
    steps = [TimedStep(phase="prefill", start_s=0.0, end_s=5.0)]
    starts = {0: 1.0, 1: 2.0, 2: 4.0, 3: 4.5}
    records = [
        RankRecord(rank=r, steps=steps, calls=[call("all_reduce", "tp", start, 5.0)])
        for r, start in starts.items()
    ]
    waits = waiting_s(records, Layout(tp=2, pp=2))
    assert waits == {0: [1.0], 1: [0.0], 2: [0.5], 3: [0.0]}
