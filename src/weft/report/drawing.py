"""What a figure is, before the page draws it: axes, and series of bars, points and lines.

The page needs no script and no library: names and ticks are HTML beside the plot, bars and lines
are SVG that stretches with it. Coordinates in a plot run from 0 to 1,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from weft.report.text import binary_bytes, number

SIZE: Final = 1000
"""Both sides of a plot in its own coordinates."""
_MOST_TICKS: Final = 6
_MOST_DOTS: Final = 40


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of values, and the names of some of them: (value, name)."""

    title: str = ""
    low: float = 0.0
    high: float = 1.0
    ticks: Sequence[tuple[float, str]] = ()
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where ``value`` lies, from 0 to SIZE; values beyond the ends lie at these."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        share = (value - low) / (high - low)
        return round(SIZE * min(max(share, 0.0), 1.0), 2)


@dataclass(frozen=True, slots=True)
class Bar:
    """From ``low`` to ``high`` at ``place``: the number of a lane, or a value of the x axis."""

    place: float
    low: float
    high: float
    text: str = ""
    width: float = 0.72


@dataclass(frozen=True, slots=True)
class Point:
    """A value, with an interval around ``y`` (around ``x`` on lanes) where it is known."""

    x: float
    y: float
    text: str = ""
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """What has one name and one colour; ``is_joined`` draws a line through the points."""

    name: str
    colour: str
    bars: Sequence[Bar] = ()
    points: Sequence[Point] = ()
    is_joined: bool = False

    @property
    def dots(self) -> Sequence[Point]:
        """The points that are drawn; a long line has none."""
        return () if self.is_joined and len(self.points) > _MOST_DOTS else self.points


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Series over two axes; with ``lanes``, the names of rows under each other, bars lie.

    ``legend`` is left out where the names say nothing that the lanes do not.
    """

    x: Axis
    y: Axis = field(default_factory=Axis)
    series: Sequence[Series] = ()
    lanes: Sequence[str] = ()
    height: int = 300

    @property
    def legend(self) -> list[Series]:
        return [one for one in self.series if one.name]

    def rectangle(self, bar: Bar) -> tuple[float, float, float, float]:
        """x, y, width and height in the plot (in its lane, where there are lanes)."""
        if self.lanes:
            start, end = self.x.place(bar.low), self.x.place(bar.high)
            thickness = bar.width * SIZE
            return start, round((SIZE - thickness) / 2, 1), round(end - start, 2), thickness
        left, right = (self.x.place(bar.place + bar.width * side) for side in (-0.5, 0.5))
        top, bottom = SIZE - self.y.place(bar.high), SIZE - self.y.place(bar.low)
        return left, round(top, 2), round(right - left, 2), round(bottom - top, 2)

    def dot(self, point: Point) -> tuple[float, float]:
        y = SIZE / 2 if self.lanes else SIZE - self.y.place(point.y)
        return self.x.place(point.x), round(y, 2)

    def whisker(self, point: Point) -> str:
        """The interval of a point as an SVG path."""
        x, y = self.dot(point)
        low, high = point.low or 0.0, point.high or 0.0
        if self.lanes:
            return f"M{self.x.place(low)} {y}H{self.x.place(high)}"
        return f"M{x} {SIZE - self.y.place(low):g}V{SIZE - self.y.place(high):g}"

    def line(self, series: Series) -> str:
        return "M" + "L".join("{} {}".format(*self.dot(point)) for point in series.points)

    def band(self, series: Series) -> str:
        """The area between the ends of the intervals."""
        there = [(point.x, point.high) for point in series.points]
        back = [(point.x, point.low) for point in reversed(series.points)]
        corners = [Point(x, y) for x, y in (*there, *back) if y is not None]
        return "M" + "L".join("{} {}".format(*self.dot(corner)) for corner in corners) + "Z"


def linear(
    title: str, values: Iterable[float], text: Callable[[float], str] = number, *, low: float = 0.0
) -> Axis:
    """From ``low`` to a round number above all values."""
    most = max((value for value in values if math.isfinite(value)), default=0.0)
    if most <= low:
        most = low + 1.0
    step = _round_step((most - low) / (_MOST_TICKS - 1))
    count = math.ceil((most - low) / step - 1e-9)
    ticks = [(low + step * n, text(float(f"{low + step * n:.12g}"))) for n in range(count + 1)]
    return Axis(title=title, low=low, high=low + step * count, ticks=ticks)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * nice for nice in (1, 2, 5, 10) if step <= power * nice * (1 + 1e-9))


def logarithmic(title: str, values: Iterable[float], text: Callable[[float], str] = number) -> Axis:
    """Over all positive values, a tick at powers of ten, at 1, 2 and 5 of them where there are few."""
    known = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    low, high = min(known) / 1.25, max(known) * 1.25
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    nice = (1, 2, 5) if len(powers) <= 3 else (1,)
    step = max(1, math.ceil(len(powers) / _MOST_TICKS))
    marks = [factor * 10.0**power for power in powers[::step] for factor in nice]
    ticks = [(mark, text(float(f"{mark:.12g}"))) for mark in marks if low <= mark <= high]
    return Axis(title=title, low=low, high=high, ticks=ticks, is_log=True)


def spread(title: str, values: Sequence[float], ratio: float) -> Axis:
    """Logarithmic where the largest is more than ``ratio`` times the smallest, else from zero."""
    is_wide = bool(values) and min(values) > 0 and max(values) > ratio * min(values)
    return (logarithmic if is_wide else linear)(title, values)


def powers_of_two(title: str, sizes: Iterable[float]) -> Axis:
    """A logarithmic axis of bytes that names powers of two."""
    exponents = [math.log2(size) for size in sizes if size > 0] or [10.0]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    ticks = range(low, high + 1, max(1, math.ceil((high - low) / _MOST_TICKS)))
    return Axis(
        title=title,
        low=2.0 ** (low - 0.4),
        high=2.0 ** (high + 0.4),
        ticks=[(2.0**tick, binary_bytes(2.0**tick)) for tick in ticks],
        is_log=True,
    )


def merged(lines: Mapping[str, Sequence[Point]]) -> dict[str, Sequence[Point]]:
    """Lines that are equal under one name, so that none hides another."""
    names: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, points in lines.items():
        names.setdefault(tuple((point.x, point.y) for point in points), []).append(name)
    return {", ".join(same): lines[same[0]] for same in names.values() if lines[same[0]]}
