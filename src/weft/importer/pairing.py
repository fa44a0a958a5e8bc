"""Pair the calls of several ranks, and tell waiting for a peer from moving bytes.

Calls pair by group, step and sequence. In an all-reduce, all-gather, reduce-scatter
or all-to-all nobody is done before the last rank came, and the last one waits for
nobody: the shortest duration over the ranks is the transfer, the rest of each rank's
duration is waiting. That needs no common clock. For send, receive and broadcast the
start of the other side is needed, on a clock corrected by clocks.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from weft.importer.layout_inference import RunLayout, group_ranks
from weft.importer.rank_trace import RankTrace, TracedCall

SYMMETRIC: Final = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier"}
)
_CLOCK_ERROR_US: Final = 5.0
_CLOCK_ERROR_SHARE: Final = 0.1
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


class Clock(Protocol):
    """What pairing needs of a rank's clock (clocks.py has it)."""

    @property
    def is_consistent(self) -> bool: ...

    @property
    def width_us(self) -> float: ...

    def at(self, time_us: float) -> float: ...


def meetings(traces: Mapping[int, RankTrace], run: RunLayout) -> list[Meeting]:
    """Every collective that two or more of the given ranks took part in.

    Where the ranks made unlike numbers of calls of a kind in a step, nobody can say which
    belong together: none of them is paired.
    """
    table: dict[tuple[Any, ...], dict[int, list[TracedCall]]] = defaultdict(
        lambda: defaultdict(list)
    )
    offsets = step_offsets(traces)
    for rank, trace in traces.items():
        for call in trace.calls:
            ranks = _participants(call, rank, run)
            operation = "send" if call.operation == "recv" else call.operation
            step = None if call.step is None else call.step + offsets[rank]
            if ranks is not None:
                table[ranks, operation, call.source == "gloo", step][rank].append(call)
    return [
        Meeting(calls=dict(zip(calls, met, strict=True)), is_complete=len(calls) == len(key[0]))
        for key, calls in table.items()
        if len(calls) > 1 and len({len(own) for own in calls.values()}) == 1
        for met in zip(*calls.values(), strict=True)
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
            if call.operation == "recv" and sends and not _is_sized(call):
                call.tensors = sends[0].tensors
                call.input_shape, call.dtype = sends[0].input_shape, sends[0].dtype
                call.input_elements = sends[0].input_elements


def _is_sized(call: TracedCall) -> bool:
    return bool(call.tensors or call.input_shape or call.input_elements)


def split_waiting(found: Sequence[Meeting], clocks: Mapping[int, Clock]) -> None:
    """Set ``wait_us`` and ``transfer_us`` of every call whose whole group is there.

    Nothing is set where the ranks' clocks contradict each other, nor where a split
    needs a common clock and the clocks are not known well enough for it.
    """
    for meeting in found:
        if not meeting.is_complete or not all(clocks[r].is_consistent for r in meeting.calls):
            continue
        if meeting.is_symmetric:
            last = min(meeting.calls, key=lambda rank: meeting.calls[rank].duration_us)
            transfer = meeting.calls[last].duration_us
            for call in meeting.calls.values():
                call.waited_for = last
                call.transfer_us, call.wait_us = transfer, call.duration_us - transfer
        elif meeting.root is not None:
            _split_by_clock(meeting, clocks, meeting.root)


def _split_by_clock(meeting: Meeting, clocks: Mapping[int, Clock], root: int) -> None:
    """Whoever came before the root waited for it, and the root for whoever receives from it."""
    starts = {r: call.start_us - clocks[r].at(call.start_us) for r, call in meeting.calls.items()}
    error = sum(clocks[rank].width_us for rank in meeting.calls) / 2
    for rank, call in meeting.calls.items():
        if error > max(_CLOCK_ERROR_US, _CLOCK_ERROR_SHARE * call.duration_us):
            continue
        begun = max(starts.values()) if rank == root else max(starts[root], starts[rank])
        call.wait_us = min(max(begun - starts[rank], 0.0), call.duration_us)
        call.transfer_us = call.duration_us - call.wait_us
