"""Pair the calls of several ranks, and tell waiting for a peer from moving bytes.

Calls pair by group, step and sequence. In an all-reduce, all-gather, reduce-scatter
or all-to-all nobody is done before the last rank came, and the last one waits for
nobody: the shortest duration over the ranks is the transfer, the rest of each rank's
duration is waiting. That needs no common clock. For send, receive and broadcast the
start of the other side is needed, on a clock corrected by clocks.py.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from weft.importer.layout_inference import group_of, group_ranks
from weft.importer.rank_trace import Call, RankTrace
from weft.vocabulary.layout import Layout

SYMMETRIC: Final = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier"}
)
_POINT_TO_POINT: Final = frozenset({"send", "recv"})


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """The calls of one collective: one of each rank that took part and is in the traces."""

    calls: Mapping[int, Call]
    is_complete: bool

    @property
    def is_symmetric(self) -> bool:
        return next(iter(self.calls.values())).operation in SYMMETRIC


def meetings(traces: Mapping[int, RankTrace], layout: Layout) -> list[Meeting]:
    """Every collective that two or more of the given ranks took part in."""
    table: dict[tuple[Any, ...], dict[int, Call]] = defaultdict(dict)
    offsets = step_offsets(traces)
    for rank, trace in traces.items():
        for key, call in _keyed(rank, trace, layout, offsets[rank]):
            table[key][rank] = call
    return [
        Meeting(calls=calls, is_complete=len(calls) == len(key[0]))
        for key, calls in table.items()
        if len(calls) > 1
    ]


def _keyed(
    rank: int, trace: RankTrace, layout: Layout, step_offset: int
) -> Iterator[tuple[tuple[Any, ...], Call]]:
    seen: Counter[tuple[Any, ...]] = Counter()
    for call in trace.calls:
        ranks = _participants(call, rank, layout)
        operation = "send" if call.operation == "recv" else call.operation
        step = None if call.step is None else call.step + step_offset
        kind = (ranks, operation, call.source == "gloo", step)
        yield (*kind, seen[kind]), call
        seen[kind] += 1


def _participants(call: Call, rank: int, layout: Layout) -> tuple[int, ...]:
    """Global ranks of the call; (from, to) for a send or receive."""
    if call.operation in _POINT_TO_POINT:
        away = layout.tp if call.operation == "send" else -layout.tp
        peer = call.peer if call.peer is not None else rank + away
        if layout.world_size == 2:
            peer = 1 - rank
        return (rank, peer) if call.operation == "send" else (peer, rank)
    if call.ranks is not None:
        return call.ranks
    kind, _ = group_of(call, rank, layout)
    return group_ranks(layout, kind, rank)


def step_offsets(traces: Mapping[int, RankTrace]) -> dict[int, int]:
    """What to add to each rank's step numbers so that equal numbers are the same step.

    Profilers start one after another, so a rank may miss the first steps of the others:
    the longest list of labels is the reference, and each rank's list is looked up in it.
    """
    labels = {rank: [step.label for step in trace.busy_steps] for rank, trace in traces.items()}
    reference = max(labels.values(), key=len, default=[])
    return {rank: _position(own, reference) or 0 for rank, own in labels.items()}


def same_steps(first: RankTrace, second: RankTrace) -> bool:
    """Whether two ranks ran the same steps, apart from some at the start or the end."""
    own = [step.label for step in first.busy_steps]
    other = [step.label for step in second.busy_steps]
    short, long = sorted((own, other), key=len)
    return _position(short, long) is not None


def _position(part: Sequence[Any], whole: Sequence[Any]) -> int | None:
    """Where ``part`` lies in ``whole``, nearest to the end first (profilers stop together)."""
    for start in range(len(whole) - len(part), -1, -1):
        if list(whole[start : start + len(part)]) == list(part):
            return start
    return None


def share_sizes(found: Sequence[Meeting]) -> None:
    """Give a receive the tensors or element count that its sender recorded."""
    for meeting in found:
        sends = [call for call in meeting.calls.values() if call.operation == "send"]
        for call in meeting.calls.values():
            if call.operation == "recv" and sends and not _is_sized(call):
                call.tensors = sends[0].tensors
                call.input_shape, call.dtype = sends[0].input_shape, sends[0].dtype
                call.input_elements = sends[0].input_elements


def _is_sized(call: Call) -> bool:
    return bool(call.tensors or call.input_shape or call.input_elements)


def split_waiting(found: Sequence[Meeting], offset_us: Callable[[int], float]) -> None:
    """Set ``wait_us`` and ``transfer_us`` of every call whose whole group is there."""
    for meeting in found:
        if not meeting.is_complete:
            continue
        if meeting.is_symmetric:
            transfer = min(call.duration_us for call in meeting.calls.values())
            for call in meeting.calls.values():
                call.transfer_us, call.wait_us = transfer, call.duration_us - transfer
        else:
            _split_by_clock(meeting, offset_us)


def _split_by_clock(meeting: Meeting, offset_us: Callable[[int], float]) -> None:
    begun = max(call.start_us - offset_us(rank) for rank, call in meeting.calls.items())
    for rank, call in meeting.calls.items():
        wait = begun - (call.start_us - offset_us(rank))
        call.wait_us = min(max(wait, 0.0), call.duration_us)
        call.transfer_us = call.duration_us - call.wait_us
