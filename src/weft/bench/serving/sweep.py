"""The highest load that holds the limits: doubled until it does not, then halved in between.

Every load is asked with the same prompts and the same order of gaps, so that more load is never
easier by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from weft.errors import UserError

SCHEMA: Final = "weft.bench.sweep/1"
ATTAINMENT: Final = 0.99
"""The share of requests that must be within the limits."""
Kind = Literal["rate", "concurrency"]
_RESOLUTION: Final = 1.03
_MOST_DOUBLINGS: Final = 16
_MOST_HALVINGS: Final = 4
_Z: Final = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One load: requests/s or open requests, and its ``weft.bench.serve/1`` result."""

    load: float
    result: dict[str, Any]

    @property
    def goodput(self) -> dict[str, Any]:
        found: dict[str, Any] = self.result["definitions"]["weft"]["goodput"]
        return found

    @property
    def holds(self) -> bool:
        share = self.goodput["share"]
        return share is not None and share >= ATTAINMENT


@dataclass(kw_only=True)
class Sweep:
    """``measure`` runs one load; ``loads``: these and no others, in their order."""

    kind: Kind
    measure: Callable[[float], SweepPoint]
    loads: Sequence[float] = ()
    limits_ms: Mapping[str, float] = field(default_factory=dict)
    points: list[SweepPoint] = field(default_factory=list)

    def run(self, start: float) -> Iterator[SweepPoint]:
        """Every point as it is measured, beginning at ``start``."""
        if self.loads:
            yield from map(self._measured, self.loads)
            return
        load = self._whole(start)
        point = self._measured(load)
        yield point
        first, step = point.holds, 2.0 if point.holds else 0.5
        for _ in range(_MOST_DOUBLINGS if first else _MOST_HALVINGS):
            if point.holds != first:
                break
            after = self._whole(load * step)
            if after == load:
                return
            load = after
            point = self._measured(load)
            yield point
        yield from self._between()

    def _between(self) -> Iterator[SweepPoint]:
        """Halve what lies between the knee and the first load above it that does not hold."""
        while self.knee is not None and (above := self._above()) is not None:
            middle = self._whole(math.sqrt(self.knee * above))
            close = above / self.knee <= _RESOLUTION
            if close or middle <= self.knee or middle >= above:
                return
            yield self._measured(middle)

    def _whole(self, load: float) -> float:
        return max(1.0, float(round(load))) if self.kind == "concurrency" else load

    def _measured(self, load: float) -> SweepPoint:
        point = self.measure(load)
        self.points.append(point)
        return point

    @property
    def knee(self) -> float | None:
        """The highest load that held, below every one that did not."""
        above = min((one.load for one in self.points if not one.holds), default=math.inf)
        return max((p.load for p in self.points if p.holds and p.load < above), default=None)

    def _above(self) -> float | None:
        return min((one.load for one in self.points if not one.holds), default=None)

    def to_dict(self) -> dict[str, Any]:
        """The ``weft.bench.sweep/1`` object, points by load."""
        points = sorted(self.points, key=lambda one: one.load)
        return {
            "schema": SCHEMA,
            "of": self.kind,
            "limits_ms": dict(self.limits_ms),
            "attainment": ATTAINMENT,
            "knee": self.knee,
            "knee_below": self._above(),
            "points": [_point_json(point) for point in points],
        }


def _point_json(point: SweepPoint) -> dict[str, Any]:
    good = point.goodput
    low, high = share_interval(good["num_good"], good["num_judged"])
    return {
        "load": point.load,
        "holds": point.holds,
        "share": {"value": good["share"], "low": low, "high": high},
        "goodput_requests_per_s": good["requests_per_s"],
        "result": point.result,
    }


def share_interval(num_good: int, num: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927, JASA 22)."""
    if not num:
        return 0.0, 1.0
    share, spread = num_good / num, _Z**2 / num
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def parse_sweep(text: str) -> tuple[Kind, tuple[float, ...]]:
    """``rate``, ``concurrency``, or either with its own loads: ``rate=1,2,4``."""
    kind, given, listed = text.partition("=")
    try:
        loads = tuple(float(part) for part in listed.split(",")) if given else ()
    except ValueError:
        loads = (0.0,)
    whole = kind != "concurrency" or all(load.is_integer() for load in loads if load < 1e6)
    if (
        kind not in ("rate", "concurrency")
        or not all(0 < load < 1e6 for load in loads)
        or not whole
    ):
        raise UserError(f"`sweep` {text}: write rate, concurrency, or loads: rate=1,2,4")
    return ("rate" if kind == "rate" else "concurrency"), loads
