"""How far the ranks' clocks are apart, from what cannot have happened otherwise.

Nobody leaves an all-reduce before everybody entered it, and nothing is received
before its sending began. Each such pair of events bounds the difference of two
clocks; all of them together leave an interval. Within it the estimate is the median
difference of the ends of shared collectives (they end almost together), or the
middle of the interval, or zero where it is open on one side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median
from typing import Any

from weft.importer.pairing import Meeting
from weft.importer.rank_trace import Call


@dataclass(frozen=True, kw_only=True)
class ClockOffset:
    """Clock of ``rank`` minus clock of ``reference``: estimate and bounds in microseconds.

    A bound is None where nothing bounds that side. ``is_consistent`` is False where the
    bounds contradict each other, that is, the clocks drift against each other.
    """

    rank: int
    reference: int
    offset_us: float
    low_us: float | None
    high_us: float | None
    is_consistent: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "reference": self.reference,
            "offset_us": round(self.offset_us, 3),
            "low_us": None if self.low_us is None else round(self.low_us, 3),
            "high_us": None if self.high_us is None else round(self.high_us, 3),
            "consistent": self.is_consistent,
        }


@dataclass
class _Difference:
    """What is known about clock(second) - clock(first)."""

    low: float = -math.inf
    high: float = math.inf
    ends: list[float] = field(default_factory=list)

    def estimate(self) -> float:
        if self.low > self.high:
            return (self.low + self.high) / 2
        if self.ends:
            return min(max(median(self.ends), self.low), self.high)
        if math.isinf(self.low) or math.isinf(self.high):
            return min(max(0.0, self.low), self.high)
        return (self.low + self.high) / 2


def estimate_offsets(ranks: Sequence[int], found: Sequence[Meeting]) -> dict[int, ClockOffset]:
    """Offsets of all ranks against the lowest, along the best chain of shared collectives."""
    differences: dict[tuple[int, int], _Difference] = defaultdict(_Difference)
    for meeting in found:
        for first, second in combinations(sorted(meeting.calls), 2):
            _observe(differences[first, second], meeting, first, second)
    reference = min(ranks)
    offsets = {reference: _Difference(0.0, 0.0)}
    estimates = {reference: 0.0}
    waiting = [reference]
    while waiting:
        known = waiting.pop(0)
        for rank in ranks:
            difference = _between(differences, known, rank)
            if rank in offsets or difference is None:
                continue
            estimates[rank] = estimates[known] + difference.estimate()
            offsets[rank] = _Difference(
                offsets[known].low + difference.low, offsets[known].high + difference.high
            )
            waiting.append(rank)
    return {
        rank: _offset(rank, reference, estimates.get(rank, 0.0), offsets.get(rank, _Difference()))
        for rank in ranks
    }


def _observe(difference: _Difference, meeting: Meeting, first: int, second: int) -> None:
    one, two = meeting.calls[first], meeting.calls[second]
    if meeting.is_symmetric:
        difference.low = max(difference.low, two.start_us - one.end_us)
        difference.high = min(difference.high, two.end_us - one.start_us)
        difference.ends.append(two.end_us - one.end_us)
    elif _sends_to(one, two):
        difference.high = min(difference.high, two.end_us - one.start_us)
    elif _sends_to(two, one):
        difference.low = max(difference.low, two.start_us - one.end_us)


def _sends_to(sender: Call, receiver: Call) -> bool:
    return sender.operation == "send" and receiver.operation == "recv"


def _between(
    differences: Mapping[tuple[int, int], _Difference], known: int, rank: int
) -> _Difference | None:
    """The difference clock(rank) - clock(known), whichever way it was observed."""
    if (known, rank) in differences:
        return differences[known, rank]
    back = differences.get((rank, known))
    if back is None:
        return None
    return _Difference(-back.high, -back.low, [-value for value in back.ends])


def _offset(rank: int, reference: int, estimate: float, bounds: _Difference) -> ClockOffset:
    return ClockOffset(
        rank=rank,
        reference=reference,
        offset_us=estimate,
        low_us=None if math.isinf(bounds.low) else bounds.low,
        high_us=None if math.isinf(bounds.high) else bounds.high,
        is_consistent=bounds.low <= bounds.high,
    )
