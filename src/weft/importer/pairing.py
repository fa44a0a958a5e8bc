"""Pair the calls of several ranks, by group, step and sequence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from weft.importer.layout_inference import RunLayout, group_ranks
from weft.importer.rank_trace import RankTrace, TracedCall
from weft.vocabulary.layout import Layout

SYMMETRIC: Final = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier"}
)
_MOST_LATE: Final = 10_000
"""Calls of a rank that are looked through for the first one that the others recorded too."""
Times = npt.NDArray[np.float64]
_POINT_TO_POINT: Final = frozenset({"send", "recv"})


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """The calls of one collective: one of each rank that took part and is in the traces."""

    calls: Mapping[int, TracedCall]
    is_complete: bool

    @property
    def is_symmetric(self) -> bool:
        return next(iter(self.calls.values())).operation in SYMMETRIC

    @property
    def root(self) -> int | None:
        """The rank that sends: to a receiver, or sampled ids from the last stage to the others."""
        for rank, call in self.calls.items():
            if call.operation == "send":
                return rank
        is_broadcast = next(iter(self.calls.values())).operation == "broadcast"
        return max(self.calls) if is_broadcast and self.is_complete else None


def meetings(traces: Mapping[int, RankTrace], run: RunLayout) -> list[Meeting]:
    """Every collective that two or more of the given ranks took part in.

    Where the ranks made unlike numbers of calls of a kind in a step, nobody can say which
    belong together: none of them is paired. Replicas number their steps apart, so calls
    between them are paired over the whole trace, or that part of it which all recorded.
    """
    table: dict[tuple[Any, ...], dict[int, list[TracedCall]]] = defaultdict(
        lambda: defaultdict(list)
    )
    offsets = step_offsets(traces, run.layout)
    told_by_times = SYMMETRIC if all(trace.is_timed for trace in traces.values()) else ()
    for rank, trace in traces.items():
        for call in trace.calls:
            ranks = _participants(call, rank, run)
            operation = "send" if call.operation == "recv" else call.operation
            step = None if call.step is None else call.step + offsets[rank]
            if ranks and _is_across(ranks, run):
                step = None
            if ranks is not None:
                table[ranks, operation, call.source == "gloo", step][rank].append(call)
    return [
        Meeting(calls=dict(zip(calls, met, strict=True)), is_complete=len(calls) == len(key[0]))
        for key, calls in table.items()
        if len(calls) > 1
        for met in zip(
            *_shared(calls, key[1] in told_by_times and _is_across(key[0], run)), strict=True
        )
    ]


def _is_across(ranks: Iterable[int], run: RunLayout) -> bool:
    return len(set(map(run.layout.replica_of, ranks))) > 1


def _shared(calls: Mapping[int, list[TracedCall]], is_across: bool) -> list[list[TracedCall]]:
    """The calls of each rank that all recorded; none where times leave that open.

    Profilers start and stop one after another, so a replica may have steps before or after
    those of the others.
    """
    lists = list(calls.values())
    longest = max(lists, key=len)
    if not is_across:
        return lists if all(len(own) == len(longest) for own in lists) else []
    shifts = [_shift(own, longest) for own in lists]
    known = [shift for shift in shifts if shift is not None]
    if len(known) < len(lists):
        return []
    first = max(known)
    last = min(shift + len(own) for shift, own in zip(known, lists, strict=True))
    found = zip(known, lists, strict=True)
    return [own[first - shift : last - shift] for shift, own in found] if first < last else []


def _shift(part: list[TracedCall], whole: list[TracedCall]) -> int | None:
    """At which call of ``whole`` the calls of ``part`` begin, by their times.

    Nobody leaves a collective before all entered it: that must hold of every two calls on some
    clock. The shift by which most calls have met counts, at least half of ``part``; none where
    two of them serve alike.
    """
    own, other = ([(c.start_us, c.end_us) for c in calls] for calls in (part, whole))
    (starts, ends), (first, last) = np.array(own).T, np.array(other).T
    size, more = len(part), len(whole) - len(part)
    if not more and _can_meet(starts, ends, first, last):
        return 0
    inside = [
        n for n in range(min(more, _MOST_LATE) + 1) if _can_meet(starts, ends, first[n:], last[n:])
    ]
    if inside:
        return inside[0] if len(inside) == 1 else None
    for lost in range(1, min(size // 2, _MOST_LATE) + 1):
        early = _can_meet(starts[lost:], ends[lost:], first, last)
        late = _can_meet(starts, ends, first[more + lost :], last[more + lost :])
        if early or late:
            return None if early and late else -lost if early else more + lost
    return None


def _can_meet(starts: Times, ends: Times, first: Times, last: Times) -> bool:
    """Whether on some clock no call of one list ends before its like in the other began."""
    size = min(len(starts), len(first))
    latest = (first[:size] - ends[:size]).max()
    return bool(latest <= (last[:size] - starts[:size]).min())


def _participants(call: TracedCall, rank: int, run: RunLayout) -> tuple[int, ...] | None:
    """Global ranks of the call; (from, to) for a send or receive; None where nothing tells."""
    layout = run.layout
    if call.operation in _POINT_TO_POINT:
        away = layout.tp if call.operation == "send" else -layout.tp
        peer = call.peer if call.peer is not None else rank + away
        if layout.world_size == 2:
            peer = 1 - rank
        return (rank, peer) if call.operation == "send" else (peer, rank)
    if call.ranks is not None:
        return call.ranks
    kind, size = run.group_of(call, rank)
    ranks = group_ranks(layout, kind, rank)
    return ranks if len(ranks) == size else None


def step_offsets(traces: Mapping[int, RankTrace], layout: Layout) -> dict[int, int]:
    """What to add to the step numbers of a replica's ranks so that equal numbers are the same step.

    Profilers start and stop one after another, so a rank may miss steps of the others: the
    replica's longest list of labels is the reference, and each rank's list is looked up in it.
    """
    longest: dict[int, RankTrace] = {}
    for rank, trace in traces.items():
        known = longest.setdefault(layout.replica_of(rank), trace)
        if len(trace.busy_steps) > len(known.busy_steps):
            longest[layout.replica_of(rank)] = trace
    return {
        rank: _position(own, longest[layout.replica_of(rank)]) or 0 for rank, own in traces.items()
    }


def same_steps(first: RankTrace, second: RankTrace) -> bool:
    """Whether two ranks ran the same steps, apart from some at the start or the end."""
    short, long = sorted((first, second), key=lambda trace: len(trace.busy_steps))
    return _position(short, long) is not None


def _position(part: RankTrace, whole: RankTrace) -> int | None:
    """Where the steps of ``part`` lie in those of ``whole``: where their distance varies least.

    Steps with equal labels fit in many places; the last place counts where two fit alike.
    """
    own, other = part.busy_steps, whole.busy_steps
    labels, wanted = [step.label for step in other], [step.label for step in own]
    fits = [
        start
        for start in range(len(other) - len(own) + 1)
        if labels[start : start + len(own)] == wanted
    ]
    if len(fits) < 2:
        return fits[0] if fits else None

    def spread(start: int) -> float:
        distances = [a.start_us - b.start_us for a, b in zip(own, other[start:], strict=False)]
        return max(distances, default=0.0) - min(distances, default=0.0)

    return min(reversed(fits), key=spread)


def share_sizes(found: Sequence[Meeting]) -> None:
    """Give a receive the tensors or element count that its sender recorded."""
    for meeting in found:
        sends = [call for call in meeting.calls.values() if call.operation == "send"]
        for call in meeting.calls.values():
            is_sized = call.tensors or call.input_shape or call.input_elements
            if call.operation == "recv" and sends and not is_sized:
                call.tensors = sends[0].tensors
                call.input_shape, call.dtype = sends[0].input_shape, sends[0].dtype
                call.input_elements = sends[0].input_elements
