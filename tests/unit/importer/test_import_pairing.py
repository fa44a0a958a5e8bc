"""Waiting, transfer and clocks, where they are known because the test made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.importer.clocks import estimate_offsets, split_waiting
from weft.importer.exchange import is_coordination
from weft.importer.layout_inference import RunLayout
from weft.importer.pairing import meetings, share_sizes
from weft.importer.rank_trace import RankTrace, Source, TracedCall
from weft.vocabulary.layout import Layout

ARRIVALS = st.lists(st.integers(0, 500), min_size=2, max_size=4)


def trace(rank: int, calls: list[TracedCall], world: int) -> RankTrace:
    return RankTrace(
        path=Path(f"rank{rank}"),
        rank=rank,
        world_size=world,
        backend=None,
        engine_version=None,
        num_events=0,
        truncated=False,
        num_damaged=0,
        calls=calls,
    )


def run_of(**degrees: int) -> RunLayout:
    layout = Layout(**degrees)
    return RunLayout(layout=layout, is_known=True, world_size=layout.world_size)


def call(operation: str, start: float, end: float, **more: object) -> TracedCall:
    return TracedCall(
        operation=operation,
        source="record",
        name=operation,
        start_us=start,
        duration_us=end - start,
        **more,  # type: ignore[arg-type]
    )


@settings(deadline=None)
@given(
    rounds=st.lists(st.lists(st.integers(0, 500), min_size=3, max_size=3), min_size=1, max_size=8),
    offsets=st.lists(st.integers(-10_000, 10_000), min_size=2, max_size=2),
    transfer=st.integers(1, 50),
)
def test_all_reduce_waiting_needs_no_common_clock(
    rounds: list[list[int]], offsets: list[int], transfer: int
) -> None:
    shifts = [0, *offsets]
    calls: list[list[TracedCall]] = [[], [], []]
    now = 0.0
    for arrivals in rounds:
        end = now + max(arrivals) + transfer
        for rank, arrival in enumerate(arrivals):
            start = now + arrival
            calls[rank].append(call("all_reduce", start + shifts[rank], end + shifts[rank]))
        now = end + 5
    traces = {rank: trace(rank, calls[rank], 3) for rank in range(3)}
    found = meetings(traces, run_of(tp=3))
    clocks = estimate_offsets([0, 1, 2], found)
    split_waiting(found, clocks)
    for number, arrivals in enumerate(rounds):
        for rank, arrival in enumerate(arrivals):
            assert calls[rank][number].transfer_us == pytest.approx(transfer)
            assert calls[rank][number].wait_us == pytest.approx(max(arrivals) - arrival)
    for rank, shift in enumerate(shifts):
        assert clocks[rank].is_consistent
        assert clocks[rank].offset_us == pytest.approx(shift)
        assert clocks[rank].low_us is not None
        assert clocks[rank].low_us <= shift + 1e-6


@settings(deadline=None)
@given(
    gaps=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), min_size=1, max_size=6),
    offset=st.integers(-5000, 5000),
)
def test_receive_waits_for_its_sender_on_the_corrected_clock(
    gaps: list[tuple[int, int]], offset: int
) -> None:
    """An all-reduce over both ranks fixes the clocks; then the receiver posts early."""
    first = [call("all_reduce", 0, 4)]
    second = [call("all_reduce", offset, 4 + offset)]
    now = 100.0
    for gap, transfer in gaps:
        sent = now + gap
        first.append(call("send", sent, sent + transfer, peer=1))
        second.append(call("recv", now + offset, sent + transfer + offset, peer=0))
        now = sent + transfer + 5
    traces = {0: trace(0, first, 2), 1: trace(1, second, 2)}
    found = meetings(traces, run_of(pp=2))
    clocks = estimate_offsets([0, 1], found)
    split_waiting(found, clocks)
    for (gap, transfer), receive in zip(gaps, second[1:], strict=True):
        assert receive.wait_us == pytest.approx(gap)
        assert receive.transfer_us == pytest.approx(transfer)


def test_one_sided_evidence_leaves_a_bound_open() -> None:
    sender = [call("send", 100, 110, peer=1)]
    receiver = [call("recv", 90, 130, peer=0)]
    found = meetings({0: trace(0, sender, 2), 1: trace(1, receiver, 2)}, run_of(pp=2))
    clock = estimate_offsets([0, 1], found)[1]
    assert (clock.offset_us, clock.low_us, clock.high_us) == (0.0, None, 30.0)
    behind = [call("recv", -990, -950, peer=0)]
    found = meetings({0: trace(0, sender, 2), 1: trace(1, behind, 2)}, run_of(pp=2))
    assert estimate_offsets([0, 1], found)[1].offset_us == -1050.0


def test_clocks_that_drift_are_called_so() -> None:
    first = [call("all_reduce", 0, 10), call("all_reduce", 1000, 1010)]
    second = [call("all_reduce", 0, 10), call("all_reduce", 1500, 1510)]
    found = meetings({0: trace(0, first, 2), 1: trace(1, second, 2)}, run_of(tp=2))
    assert not estimate_offsets([0, 1], found)[1].is_consistent


def test_no_waiting_where_a_rank_of_the_group_is_missing() -> None:
    calls = {rank: [call("all_reduce", 0, 10 + rank)] for rank in (0, 1)}
    traces = {rank: trace(rank, calls[rank], 4) for rank in (0, 1)}
    found = meetings(traces, run_of(tp=4))
    split_waiting(found, estimate_offsets([0, 1], found))
    assert calls[0][0].wait_us is None


@pytest.mark.parametrize(
    ("tp", "other", "agrees"), [(1, None, True), (2, "shared-memory", True), (2, "gloo", False)]
)
def test_what_replicas_on_cpus_reduce_over_gloo(tp: int, other: Source, agrees: bool) -> None:
    """Without its size an all-reduce over gloo is the model's only where that has no other way."""
    own = replace(call("all_reduce", 0, 1), source="gloo")
    calls = [own, replace(call("all_reduce", 2, 3), source=other)] if other else [own]
    assert is_coordination(own, run_of(tp=tp, dp=2), trace(0, calls, 2 * tp)) is agrees


def test_receiver_takes_the_senders_element_count() -> None:
    sender = [call("send", 0, 5, peer=1, input_elements=64, dtype="bfloat16")]
    receiver = [call("recv", 0, 6, peer=0)]
    found = meetings({0: trace(0, sender, 2), 1: trace(1, receiver, 2)}, run_of(pp=2))
    share_sizes(found)
    assert receiver[0].input_elements == 64
    assert receiver[0].dtype == "bfloat16"
