"""Pair the calls of several ranks, by group, step and sequence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from weft.importer.layout_inference import RunLayout, group_ranks
from weft.importer.rank_trace import RankTrace, TracedCall

SYMMETRIC: Final = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier"}
)
_MOST_LATE: Final = 10_000
"""Calls of a rank that are looked through for the first one that the others recorded too."""
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
    offsets = step_offsets(traces)
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

    Profilers start and stop one after another, so a replica may have steps before the others.
    """
    part = min(calls.values(), key=len)
    if all(len(own) == len(part) for own in calls.values()):
        return list(calls.values())
    found = [_met(own, part) for own in calls.values()] if is_across else [[]]
    return [own[0] for own in found] if all(len(own) == 1 for own in found) else []


def _met(own: list[TracedCall], part: list[TracedCall]) -> list[list[TracedCall]]:
    """The stretches of ``own`` of which no call ends before that of ``part`` began, on some clock."""
    starts, ends = np.array([(call.start_us, call.end_us) for call in own]).T
    first, last = np.array([(call.start_us, call.end_us) for call in part]).T
    size = len(part)
    return [
        own[n : n + size]
        for n in range(min(len(own) - size, _MOST_LATE) + 1)
        if (first - ends[n : n + size]).max() <= (last - starts[n : n + size]).min()
    ]


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


def step_offsets(traces: Mapping[int, RankTrace]) -> dict[int, int]:
    """What to add to each rank's step numbers so that equal numbers are the same step.

    Profilers start and stop one after another, so a rank may miss steps of the others: the
    longest list of labels is the reference, and each rank's list is looked up in it.
    """
    reference = max(traces.values(), key=lambda trace: len(trace.busy_steps))
    return {rank: _position(own, reference) or 0 for rank, own in traces.items()}


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
        return max(distances) - min(distances)

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
