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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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

    def to_json(self) -> dict[str, Any]:
        values = asdict(self) | {"consistent": self.is_consistent}
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}


@dataclass
class _Bounds:
    """What is known about clock(second) - clock(first), and when on the second's clock."""

    low: array[float] = field(default_factory=lambda: array("d"))
    low_times: array[float] = field(default_factory=lambda: array("d"))
    high: array[float] = field(default_factory=lambda: array("d"))
    high_times: array[float] = field(default_factory=lambda: array("d"))
    ends: array[float] = field(default_factory=lambda: array("d"))

    def reversed(self) -> _Bounds:
        return _Bounds(
            array("d", (-value for value in self.high)),
            self.high_times,
            array("d", (-value for value in self.low)),
            self.low_times,
            array("d", (-value for value in self.ends)),
        )

    def interval(self, drift: float, origin: float) -> tuple[float, float]:
        """The offsets at ``origin`` that all bounds allow, were the drift this."""
        low, high = -math.inf, math.inf
        if self.low:
            moved = np.frombuffer(self.low) - drift * (np.frombuffer(self.low_times) - origin)
            low = float(moved.max())
        if self.high:
            moved = np.frombuffer(self.high) - drift * (np.frombuffer(self.high_times) - origin)
            high = float(moved.min())
        return low, high

    def difference(self) -> _Difference:
        origin = min(
            (times[0] for times in (self.low_times, self.high_times) if times), default=0.0
        )
        low, high = self.interval(0.0, origin)
        drift = 0.0
        if low > high:
            drift = self._least_contradiction(origin)
            low, high = self.interval(drift, origin)
        middle = float(np.median(np.frombuffer(self.ends))) if self.ends and not drift else None
        return _Difference(low, high, drift, origin, middle)

    def _least_contradiction(self, origin: float) -> float:
        """The drift with the smallest ``low - high``, which is convex in it."""
        left, right = -MOST_DRIFT, MOST_DRIFT
        for _ in range(_SEARCH_STEPS):
            first, second = left + (right - left) / 3, right - (right - left) / 3
            gaps = [low - high for low, high in (self.interval(d, origin) for d in (first, second))]
            left, right = (left, second) if gaps[0] <= gaps[1] else (first, right)
        return (left + right) / 2


@dataclass(frozen=True)
class _Difference:
    low: float
    high: float
    drift: float
    origin: float
    middle: float | None

    def estimate(self) -> float:
        if self.low > self.high:
            return (self.low + self.high) / 2
        if self.middle is not None:
            return min(max(self.middle, self.low), self.high)
        if math.isinf(self.low) or math.isinf(self.high):
            return min(max(0.0, self.low), self.high)
        return (self.low + self.high) / 2


def estimate_offsets(ranks: Sequence[int], found: Sequence[Meeting]) -> dict[int, ClockOffset]:
    """Offsets of all ranks against the lowest, along the shortest chain of shared collectives."""
    bounds: dict[tuple[int, int], _Bounds] = defaultdict(_Bounds)
    for meeting in found:
        first = min(meeting.calls)
        for second in sorted(meeting.calls)[1:]:
            _observe(bounds[first, second], meeting, first, second)
    reference = min(ranks)
    offsets = {
        reference: ClockOffset(
            rank=reference, reference=reference, offset_us=0.0, low_us=0.0, high_us=0.0
        )
    }
    waiting = [reference]
    while waiting:
        known = waiting.pop(0)
        for rank in ranks:
            difference = None if rank in offsets else _between(bounds, known, rank)
            if difference is not None:
                offsets[rank] = _chained(offsets[known], rank, difference)
                waiting.append(rank)
    for rank in set(ranks) - set(offsets):
        offsets[rank] = ClockOffset(
            rank=rank, reference=reference, offset_us=0.0, low_us=None, high_us=None
        )
    return offsets


def _observe(bounds: _Bounds, meeting: Meeting, first: int, second: int) -> None:
    one, two = meeting.calls[first], meeting.calls[second]
    if meeting.is_symmetric:
        bounds.ends.append(two.end_us - one.end_us)
    if meeting.is_symmetric or meeting.root == second:
        bounds.low.append(two.start_us - one.end_us)
        bounds.low_times.append(two.start_us)
    if meeting.is_symmetric or meeting.root == first:
        bounds.high.append(two.end_us - one.start_us)
        bounds.high_times.append(two.end_us)


def _between(
    bounds: Mapping[tuple[int, int], _Bounds], known: int, rank: int
) -> _Difference | None:
    """The difference clock(rank) - clock(known), whichever way it was observed."""
    if (known, rank) in bounds:
        return bounds[known, rank].difference()
    back = bounds.get((rank, known))
    return None if back is None else back.reversed().difference()


def _chained(known: ClockOffset, rank: int, step: _Difference) -> ClockOffset:
    low = None if known.low_us is None or math.isinf(step.low) else known.low_us + step.low
    high = None if known.high_us is None or math.isinf(step.high) else known.high_us + step.high
    return ClockOffset(
        rank=rank,
        reference=known.reference,
        offset_us=known.at(step.origin) + step.estimate(),
        low_us=low,
        high_us=high,
        drift_ppm=known.drift_ppm + step.drift * 1e6,
        origin_us=step.origin,
        contradiction_us=known.contradiction_us + max(0.0, step.low - step.high),
    )


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
