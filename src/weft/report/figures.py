"""The figures of weft's reports: pure functions from plain data, in the unit that a title names.

A figure has no title of its own: the page sets one above it. Names may be any text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Final, NamedTuple

from weft.report.colours import ACCENT, KIND_COLOURS, NEUTRAL, kind_colour, series_colour
from weft.report.drawing import (
    Axis,
    Bar,
    Figure,
    Point,
    Series,
    linear,
    logarithmic,
    merged,
    powers_of_two,
    spread,
)
from weft.report.text import binary_bytes, decimal_bytes, number

Parts = Mapping[str, float]
_MOST_LINES: Final = 8
_FINEST: Final = 1 / 2000
_MOST_BARS: Final = 6000
"""Bars of a timeline that no screen could part are drawn as one, and more where there are many."""


def volume_by_layout(volumes: Mapping[str, Parts]) -> Figure:
    """Bytes by operation, one bar a layout: ``{"tp2": {"all_reduce": 1.3e8, …}, …}``."""
    return stacked_bars(volumes, x_title="volume", text_of=decimal_bytes)


def stacked_bars(
    values: Mapping[str, Parts],
    *,
    x_title: str,
    text_of: Callable[[float], str] = number,
    colour: Callable[[str], str] = kind_colour,
) -> Figure:
    """One lying bar a name, stacked by kind of operation or time; ``text_of`` writes a value."""
    totals = [sum(parts.values()) for parts in values.values()]
    series = _stacked(list(values.values()), list(values), text_of, colour)
    return Figure(x=linear(x_title, totals, text_of), lanes=list(values), series=series)


def _stacked(
    bars: Sequence[Parts],
    names: Sequence[str],
    text: Callable[[float], str],
    colour: Callable[[str], str] = kind_colour,
) -> list[Series]:
    """A series a kind; each bar begins where the kinds before it end."""
    kinds = _kinds(bars)
    ends = [list(accumulate(parts.get(kind, 0.0) for kind in kinds)) for parts in bars]
    return [
        Series(
            name=kind,
            colour=colour(kind),
            bars=[
                Bar(place, tops[level] - size, tops[level], f"{name} · {kind}: {text(size)}")
                for place, (tops, parts, name) in enumerate(zip(ends, bars, names, strict=True))
                if (size := parts.get(kind, 0.0))
            ],
        )
        for level, kind in enumerate(kinds)
    ]


def _kinds(bars: Iterable[Parts]) -> list[str]:
    """Kinds that occur, the known ones in their fixed order and then the others."""
    present = {kind: None for parts in bars for kind, value in parts.items() if value}
    known = [kind for kind in KIND_COLOURS if kind in present]
    return known + [kind for kind in present if kind not in KIND_COLOURS]


def grouped_bars(series: Mapping[str, Parts], x_title: str) -> Figure:
    """One lying bar a place and series: ``{"vllm": {"tp2": 12.5, …}, …}``, one colour a series."""
    places = dict.fromkeys(place for values in series.values() for place in values)
    bars = {
        f"{place} · {name}": {name: values[place]}
        for place in places
        for name, values in series.items()
        if place in values
    }
    order = list(series)
    return stacked_bars(bars, x_title=x_title, colour=lambda name: series_colour(order.index(name)))


def time_share(steps: Sequence[tuple[str, Parts]]) -> Figure:
    """Where the time of each step went: (step's label, microseconds by kind), in order."""
    bars = [parts for _, parts in steps]
    series = _stacked(bars, [name for name, _ in steps], lambda us: f"{us:,.1f} µs")
    every = max(1, -(-len(steps) // 8))
    return Figure(
        x=Axis(
            title="step",
            low=-0.6,
            high=max(len(steps), 1) - 0.4,
            ticks=[(float(n), number(n)) for n in range(0, len(steps), every)],
        ),
        y=linear("time (µs)", [sum(parts.values()) for parts in bars]),
        series=series,
    )


def message_sizes(counts: Mapping[str, Mapping[int, int]]) -> Figure:
    """Calls by message size: ``{"all_reduce": {8192: 8255, …}, …}`` (bytes to calls).

    The bins are powers of two; calls are logarithmic, because a prefill sends few large
    messages and the decode steps thousands of small ones.
    """
    bins = {op: _power_bins(sizes) for op, sizes in counts.items()}
    exponents = [exponent for calls in bins.values() for exponent in calls] or [10]
    low, high = min(exponents), max(exponents)
    ticks = range(high, low - 1, -(high - low + 1) // 7)
    most = max((count for calls in bins.values() for count in calls.values()), default=1)
    return Figure(
        x=Axis(
            title="message size",
            low=low - 0.7,
            high=high + 0.7,
            ticks=[(tick, binary_bytes(2.0**tick)) for tick in reversed(ticks)],
        ),
        y=logarithmic("calls", [0.75, most]),
        series=[
            Series(
                name=op,
                colour=kind_colour(op),
                bars=[_bin(op, exponent, count, bins) for exponent, count in calls.items()],
            )
            for op, calls in bins.items()
        ],
    )


def _bin(op: str, exponent: int, count: int, bins: Mapping[str, Mapping[int, int]]) -> Bar:
    """The operations that have this bin share its place."""
    sharing = [name for name, calls in bins.items() if exponent in calls]
    width = 0.8 / len(sharing)
    place = exponent - 0.4 + width * (sharing.index(op) + 0.5)
    ends = f"{binary_bytes(2**exponent)} to {binary_bytes(2 ** (exponent + 1))}"
    return Bar(place, 0.0, count, f"{op}, {ends}: {count:,} calls", width)


def _power_bins(sizes: Mapping[int, int]) -> dict[int, int]:
    """Calls by floor(log2(bytes)); empty messages are left out."""
    bins: dict[int, int] = defaultdict(int)
    for size, count in sorted(sizes.items()):
        if size > 0 and count > 0:
            bins[size.bit_length() - 1] += count
    return dict(bins)


def volume_by_decode_length(lines: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Volume of a request against its decode tokens, one line a layout: (tokens, bytes)."""
    return line_chart(lines, "decode tokens", "volume", decimal_bytes)


def line_chart(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    x_title: str,
    y_title: str,
    text_of: Callable[[float], str] = number,
    *,
    is_joined: bool = True,
) -> Figure:
    """Points (joined in their order), one line a name, both axes from zero."""
    points = {
        name: [Point(x, y, f"{name} · {number(x)}: {text_of(y)}") for x, y in line]
        for name, line in lines.items()
    }
    return Figure(
        x=linear(x_title, [x for line in lines.values() for x, _ in line]),
        y=linear(y_title, [y for line in lines.values() for _, y in line], text_of),
        series=_lines(points, is_joined=is_joined),
    )


def _lines(points: Mapping[str, Sequence[Point]], *, is_joined: bool = True) -> list[Series]:
    return [
        Series(name=name, colour=series_colour(index), points=line, is_joined=is_joined)
        for index, (name, line) in enumerate(merged(points).items())
    ]


def latency_by_size(lines: Mapping[str, Sequence[Point]]) -> Figure:
    """Latency (µs) against message size (bytes) on logarithmic axes, one line an algorithm.

    The interval of a point is drawn as a band: from the fastest to the slowest call.
    """
    points = [point for line in lines.values() for point in line]
    times = [time for p in points for time in (p.y, p.low, p.high) if time is not None]
    ordered = {name: sorted(line, key=lambda point: point.x) for name, line in lines.items()}
    return Figure(
        x=powers_of_two("message size", [point.x for point in points]),
        y=logarithmic("latency (µs)", times),
        series=_lines(ordered),
        height=380,
    )


def distribution(curves: Mapping[str, Sequence[tuple[float, float]]], x_title: str) -> Figure:
    """Share of samples at or below a value, one curve a name: (value, share)."""
    points = {name: [Point(x, y) for x, y in curve] for name, curve in curves.items()}
    x = spread(x_title, [x for curve in curves.values() for x, _ in curve], 20)
    return Figure(x=x, y=linear("share of samples", [1.0]), series=_lines(points), height=240)


def pareto_front(front: Mapping[str, Point], others: Mapping[str, Point]) -> Figure:
    """Tokens/s per GPU against TPOT (ms); the points of the front are numbered and joined."""
    points = [*front.values(), *others.values()]
    ordered = sorted(front.items(), key=lambda pair: pair[1].x)
    numbered = [
        Point(point.x, point.y, _speed(f"{place}: {name}", point), name=str(place))
        for place, (name, point) in enumerate(ordered[:_MOST_LINES], 1)
    ]
    rest = [Point(point.x, point.y, _speed(name, point)) for name, point in ordered[_MOST_LINES:]]
    key = "; ".join(f"{place} {name}" for place, (name, _) in enumerate(ordered[:_MOST_LINES], 1))
    gray = [Point(p.x, p.y, _speed(name, p)) for name, p in others.items()]
    series = [
        Series(name="others", colour=NEUTRAL, points=gray),
        Series(name=f"front: {key}", colour=ACCENT, points=[*numbered, *rest], is_joined=True),
    ]
    return Figure(
        x=spread("TPOT (ms), lower is better", [point.x for point in points], 5),
        y=linear("tokens/s per GPU, higher is better", [point.y for point in points]),
        series=[one for one in series if one.points],
        height=380,
    )


def _speed(name: str, point: Point) -> str:
    return f"{name}: TPOT {point.x:,.4g} ms, {point.y:,.4g} tokens/s per GPU"


def predicted_and_measured(
    cases: Sequence[tuple[str, Point, float | None]], *, x_title: str
) -> Figure:
    """One lane a case: its name, the prediction (x with its interval), and what was measured."""
    ends = [end for _, p, measured in cases for end in (p.x, p.low, p.high, measured)]
    predicted = [
        Point(p.x, lane, f"{name}: predicted {p.x:,.5g}", p.low, p.high)
        for lane, (name, p, _) in enumerate(cases)
    ]
    measured = [
        Point(value, lane, f"{name}: measured {value:,.5g}")
        for lane, (name, _, value) in enumerate(cases)
        if value is not None
    ]
    return Figure(
        x=spread(x_title, [end for end in ends if end is not None], 20),
        lanes=[name for name, *_ in cases],
        series=[
            Series(name="predicted, with interval", colour=ACCENT, points=predicted),
            Series(name="measured", colour=series_colour(1), points=measured),
        ],
    )


class Span(NamedTuple):
    """``rank`` was busy with ``name``; ``kind`` gives the colour (an operation, ``compute``)."""

    rank: int
    kind: str
    name: str
    start_us: float
    end_us: float


def step_timeline(spans: Sequence[Span]) -> Figure:
    """All on one time axis that starts at the first of them, a lane a rank."""
    ranks = sorted({span.rank for span in spans})
    start = min((span.start_us for span in spans), default=0.0)
    whole = max((span.end_us - start for span in spans), default=0.0)
    bars: dict[str, list[Bar]] = {kind: [] for kind in _layers(spans)}
    finest = whole * max(_FINEST, len(bars) * len(ranks) / _MOST_BARS)
    for rank, kind, name, begun, end in sorted(spans, key=itemgetter(1, 0, 3)):
        low, high, some, lane = begun - start, end - start, bars[kind], ranks.index(rank)
        if some and some[-1].place == lane and low - some[-1].high < finest:
            some[-1] = Bar(lane, some[-1].low, max(high, some[-1].high), kind)
        else:
            some.append(Bar(lane, low, high, f"{name}: {high - low:,.1f} µs from {low:,.1f} µs"))
    return Figure(
        x=linear("time in the step (µs)", [whole]),
        lanes=[f"rank {rank}" for rank in ranks],
        series=[
            Series(name=kind, colour=kind_colour(kind), bars=some) for kind, some in bars.items()
        ],
    )


def _layers(spans: Sequence[Span]) -> list[str]:
    """What lies behind comes first: the step, then what the rank did by itself."""
    present = {span.kind: None for span in spans}
    background = [kind for kind in ("step", "idle", "host", "compute") if kind in present]
    return list(dict.fromkeys([*background, *_kinds([dict.fromkeys(present, 1.0)])]))
