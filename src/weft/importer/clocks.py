"""How far the ranks' clocks are apart, from what cannot have happened otherwise.

Nobody leaves an all-reduce before everybody entered it, and nothing is received
before its sending began. Each such pair of events bounds the difference of two
clocks; all of them together leave an interval. Within it the estimate is the median
difference of the ends of shared collectives (they end almost together), or the
middle of the interval, or zero where it is open on one side. Where no constant
difference serves, one that grows evenly is looked for; bounds that contradict each
other even so are no clocks of one run.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from weft.importer.pairing import Meeting

MOST_DRIFT: Final = 500e-6
"""The fastest that a clock is slewed against another (NTP: 500 µs a second)."""
_SEARCH_STEPS: Final = 60
_CLOCK_ERROR_US: Final = 5.0
_CLOCK_ERROR_SHARE: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class ClockOffset:
    """Clock of ``rank`` minus clock of ``reference``: estimate and bounds in microseconds.

    A bound is None where nothing bounds that side. The estimate holds at ``origin_us``
    on the rank's own clock and grows by ``drift_ppm`` µs a second. ``contradiction_us``
    is by how much the bounds contradict each other whatever the drift.
    """

    rank: int
    reference: int
    offset_us: float
    low_us: float | None
    high_us: float | None
    drift_ppm: float = 0.0
    origin_us: float = 0.0
    contradiction_us: float = 0.0

    @property
    def is_consistent(self) -> bool:
        return self.contradiction_us == 0

    @property
    def width_us(self) -> float:
        """How far the bounds are apart; infinite where one is open or they contradict each other."""
        if self.low_us is None or self.high_us is None or not self.is_consistent:
            return math.inf
        return self.high_us - self.low_us

    def at(self, time_us: float) -> float:
        """The offset at a time of the rank's own clock."""
        return self.offset_us + self.drift_ppm * 1e-6 * (time_us - self.origin_us)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"consistent": self.is_consistent}
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}


@dataclass
class _Bounds:
    """What is known about clock(second) - clock(first), each with when on the second's clock."""

    low: array[float] = field(default_factory=lambda: array("d"))
    high: array[float] = field(default_factory=lambda: array("d"))
    ends: array[float] = field(default_factory=lambda: array("d"))

    def observe(self, meeting: Meeting, first: int, second: int) -> None:
        one, two = meeting.calls[first], meeting.calls[second]
        is_root = not meeting.is_symmetric and meeting.root == first
        if meeting.is_symmetric:
            self.ends.append(two.end_us - one.end_us)
        if meeting.is_symmetric or is_root:
            self.high.extend((two.end_us - one.start_us, two.end_us))
        if meeting.is_symmetric or (meeting.root is not None and not is_root):
            self.low.extend((two.start_us - one.end_us, two.start_us))

    def chained(self, known: ClockOffset, rank: int) -> ClockOffset:
        """The offset of ``rank``, the second, where that of the first is known."""
        sides = [np.array(side).reshape(-1, 2) for side in (self.low, self.high)]
        origin = min((side[0, 1] for side in sides if len(side)), default=0.0)

        def interval(drift: float) -> tuple[float, float]:
            """The offsets at ``origin`` that all bounds allow, were the drift this."""
            low, high = (side[:, 0] - drift * (side[:, 1] - origin) for side in sides)
            return low.max(initial=-math.inf), high.min(initial=math.inf)

        low, high = interval(0.0)
        drift = 0.0 if low <= high else _least_contradiction(interval)
        low, high = interval(drift)
        middle = (low + high) / 2 if math.isfinite(high - low) else 0.0
        if self.ends and not drift:
            middle = float(np.median(self.ends))
        estimate = middle if low > high else min(max(middle, low), high)
        return ClockOffset(
            rank=rank,
            reference=known.reference,
            offset_us=float(known.at(origin) + estimate),
            low_us=None if known.low_us is None or math.isinf(low) else float(known.low_us + low),
            high_us=None
            if known.high_us is None or math.isinf(high)
            else float(known.high_us + high),
            drift_ppm=known.drift_ppm + drift * 1e6,
            origin_us=float(origin),
            contradiction_us=known.contradiction_us + max(0.0, float(low - high)),
        )


def _least_contradiction(interval: Callable[[float], tuple[float, float]]) -> float:
    """The drift with the smallest ``low - high``, which is convex in it."""
    left, right = -MOST_DRIFT, MOST_DRIFT
    for _ in range(_SEARCH_STEPS):
        first, second = left + (right - left) / 3, right - (right - left) / 3
        gaps = [low - high for low, high in (interval(first), interval(second))]
        left, right = (left, second) if gaps[0] <= gaps[1] else (first, right)
    return (left + right) / 2


def estimate_offsets(ranks: Sequence[int], found: Sequence[Meeting]) -> dict[int, ClockOffset]:
    """Offsets of all ranks against the lowest, along the shortest chain of shared collectives."""
    bounds: dict[tuple[int, int], _Bounds] = defaultdict(_Bounds)
    for meeting in found:
        reference = min(meeting.calls)
        for other in meeting.calls.keys() - {reference}:
            for pair in ((reference, other), (other, reference)):
                bounds[pair].observe(meeting, *pair)
    reference = min(ranks)
    alone = partial(ClockOffset, reference=reference, offset_us=0.0)
    offsets = {reference: alone(rank=reference, low_us=0.0, high_us=0.0)}
    waiting = [reference]
    while waiting:
        known = waiting.pop(0)
        for rank in ranks:
            if rank not in offsets and (known, rank) in bounds:
                offsets[rank] = bounds[known, rank].chained(offsets[known], rank)
                waiting.append(rank)
    unknown = set(ranks) - set(offsets)
    return offsets | {rank: alone(rank=rank, low_us=None, high_us=None) for rank in unknown}


def split_waiting(found: Sequence[Meeting], clocks: Mapping[int, ClockOffset]) -> None:
    """Set ``wait_us`` and ``transfer_us`` of every call whose whole group is there.

    In an all-reduce, all-gather, reduce-scatter or all-to-all nobody is done before the last
    rank came, and the last one waits for nobody: the shortest duration over the ranks is the
    transfer, the rest of each rank's duration is waiting. That needs no common clock. For send,
    receive and broadcast the start of the other side is needed. Nothing is set where the ranks' clocks contradict each other, nor where a split
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


def _split_by_clock(meeting: Meeting, clocks: Mapping[int, ClockOffset], root: int) -> None:
    """Whoever came before the root waited for it, and the root for whoever receives from it."""
    starts = {r: call.start_us - clocks[r].at(call.start_us) for r, call in meeting.calls.items()}
    error = sum(clocks[rank].width_us for rank in meeting.calls) / 2
    for rank, call in meeting.calls.items():
        if error > max(_CLOCK_ERROR_US, _CLOCK_ERROR_SHARE * call.duration_us):
            continue
        begun = max(starts.values()) if rank == root else max(starts[root], starts[rank])
        call.wait_us = min(max(begun - starts[rank], 0.0), call.duration_us)
        call.transfer_us = call.duration_us - call.wait_us
