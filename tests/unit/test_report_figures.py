"""Figures: they show exactly the numbers that went in, in one colour a meaning."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.report import Answer, Chart, Report, Section, figures, render
from weft.report.colours import KIND_COLOURS, OPERATION_COLOURS
from weft.report.drawing import SIZE, Axis, Figure, Point, linear, logarithmic, merged
from weft.report.figures import Span
from weft.vocabulary.schedule import OPERATIONS

POSITIVE = st.floats(0.001, 1e12)


def test_every_operation_has_its_own_colour() -> None:
    assert set(OPERATION_COLOURS) == set(OPERATIONS)
    assert len(set(OPERATION_COLOURS.values())) == len(OPERATIONS)


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
        st.dictionaries(st.sampled_from(OPERATIONS), POSITIVE, max_size=4),
        max_size=5,
    )
)
def test_stacked_bars_add_up(volumes: dict[str, dict[str, float]]) -> None:
    figure = figures.volume_by_layout(volumes)
    shown: dict[str, float] = defaultdict(float)
    for one in figure.series:
        assert one.colour == OPERATION_COLOURS[one.name]
        for bar in one.bars:
            shown[figure.lanes[int(bar.place)]] += bar.high - bar.low
    for name, parts in volumes.items():
        assert shown[name] == pytest.approx(sum(parts.values()))


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from(OPERATIONS),
        st.dictionaries(st.integers(0, 2**32), st.integers(0, 10**6), max_size=6),
        max_size=4,
    )
)
def test_message_sizes_count_every_call(counts: dict[str, dict[int, int]]) -> None:
    figure = figures.message_sizes(counts)
    for one in figure.series:
        sizes = {size: count for size, count in counts[one.name].items() if size}
        assert sum(bar.high for bar in one.bars) == sum(sizes.values())
        for bar in one.bars:
            exponent = round(bar.place)
            inside = [c for size, c in sizes.items() if 2**exponent <= size < 2 ** (exponent + 1)]
            assert bar.high == sum(inside)


def test_bars_of_one_bin_do_not_overlap() -> None:
    figure = figures.message_sizes({"all_reduce": {8192: 3}, "send": {8192: 4, 64: 1}})
    first, second = (one.bars for one in figure.series)
    left, _, width, _ = figure.rectangle(first[0])
    assert left + width <= figure.rectangle(second[-1])[0] + 0.1
    assert second[0].width == pytest.approx(2 * second[-1].width)


def test_equal_lines_are_one_under_both_names() -> None:
    lines = {"tp2": [(128, 1e6), (256, 1.5e6)], "tp4": [(128, 2e6)]}
    figure = figures.volume_by_decode_length(lines | {"dp2xtp2": lines["tp2"]})
    assert [one.name for one in figure.series] == ["tp2, dp2xtp2", "tp4"]
    assert [(point.x, point.y) for point in figure.series[0].points] == lines["tp2"]


@given(st.dictionaries(st.text(max_size=5), st.lists(st.tuples(st.integers(0, 2), st.just(1)))))
def test_merging_loses_no_line(lines: dict[str, list[tuple[int, int]]]) -> None:
    points = {name: [Point(*pair) for pair in line] for name, line in lines.items()}
    found = merged(points)
    kept = [[(p.x, p.y) for p in line] for line in found.values()]
    assert all(line in kept for line in lines.values() if line)
    assert len(kept) == len({tuple(line) for line in lines.values() if line})


def test_timeline_starts_at_zero_and_orders_ranks() -> None:
    events = [
        Span(10, "compute", "layer", 105.0, 110.0),
        Span(2, "all_reduce", "sum", 100.0, 104.0),
        Span(2, "other", "?", 104.0, 105.0),
    ]
    figure = figures.step_timeline(events)
    assert figure.lanes == ["rank 2", "rank 10"]
    spans = {
        one.name: [(bar.place, bar.low, bar.high) for bar in one.bars] for one in figure.series
    }
    assert figure.series[0].colour == KIND_COLOURS["compute"]
    assert spans == {"compute": [(1, 5, 10)], "all_reduce": [(0, 0, 4)], "other": [(0, 4, 5)]}


def test_a_step_lies_behind_its_calls() -> None:
    kinds = ("all_reduce", "compute", "step")
    events = [Span(0, kind, "n", 0.0, 9.0) for kind in kinds]
    drawn = [one.name for one in figures.step_timeline(events).series]
    assert drawn == ["step", "compute", "all_reduce"]


def test_events_that_no_screen_can_part_are_one_bar() -> None:
    events = [
        Span(rank, "compute", "n", float(n), n + 0.9) for rank in range(2) for n in range(50_000)
    ]
    (series,) = figures.step_timeline(events).series
    assert len(series.bars) == 2
    covered = sum(bar.high - bar.low for bar in series.bars)
    assert covered == pytest.approx(100_000, rel=1e-3)


def test_time_share_stacks_in_step_order() -> None:
    steps = [("prefill", {"compute": 9.0, "all_reduce": 1.0}), ("decode 1", {"compute": 2.0})]
    figure = figures.time_share(steps)
    stacked = {one.name: [(bar.low, bar.high) for bar in one.bars] for one in figure.series}
    assert stacked == {"compute": [(0, 9), (0, 2)], "all_reduce": [(9, 10)]}


def test_latency_lines_and_bands() -> None:
    lines = {
        name: [Point(size, us, low=1.0, high=4.0) for size in (16384, 8192)]
        for name, us in (("ring", 2.0), ("one-shot", 3.0))
    }
    figure = figures.latency_by_size(lines)
    assert [one.name for one in figure.series] == ["ring", "one-shot"]
    assert [point.x for point in figure.series[0].points] == [8192, 16384]
    assert figure.band(figure.series[0]).count("L") == 3
    assert figure.x.is_log
    assert figure.y.is_log


def test_pareto_front_is_numbered_in_order() -> None:
    front = {"tp2": Point(9.0, 50.0), "tp8": Point(4.0, 20.0)}
    others, joined = figures.pareto_front(front, {"pp8": Point(9.0, 10.0)}).series
    assert joined.name == "front: 1 tp8; 2 tp2"
    assert [(point.x, point.name) for point in joined.points] == [(4.0, "1"), (9.0, "2")]
    assert not others.is_joined
    assert not figures.pareto_front({}, {}).series


def test_predicted_and_measured_intervals() -> None:
    prediction = Point(5.0, 0.0, low=4.0, high=7.0)
    cases = [("a", prediction, 6.0), ("b", prediction, None)]
    figure = figures.predicted_and_measured(cases, x_title="TPOT (ms)")
    predicted, measured = figure.series
    assert [(point.low, point.high, point.y) for point in predicted.points] == [
        (4, 7, 0),
        (4, 7, 1),
    ]
    assert [point.x for point in measured.points] == [6.0]


NUMBERS = st.lists(st.floats(-1e18, 1e18, allow_nan=False), max_size=6)


@given(values=NUMBERS, make=st.sampled_from([linear, logarithmic]))
def test_axes_hold_their_values_and_few_ticks(values: list[float], make: object) -> None:
    axis: Axis = make("title", values)  # type: ignore[operator]
    assert axis.low < axis.high
    assert len(axis.ticks) <= 12
    assert all(axis.low <= value <= axis.high * (1 + 1e-9) for value, _ in axis.ticks)
    assert all(0 <= axis.place(value) <= SIZE for value in values)
    inside = [value for value in values if value > 0]
    assert sorted(inside, key=axis.place) == sorted(inside) or len(
        set(map(axis.place, inside))
    ) < len(inside)


@pytest.mark.parametrize(
    "figure",
    [
        figures.volume_by_layout({}),
        figures.volume_by_decode_length({}),
        figures.message_sizes({}),
        figures.step_timeline([]),
        figures.time_share([]),
        figures.latency_by_size({}),
        figures.pareto_front({}, {}),
        figures.predicted_and_measured([], x_title="x"),
    ],
)
def test_nothing_to_show_is_an_empty_figure(figure: Figure) -> None:
    report = Report(
        title="t",
        answer=Answer(summary="s"),
        sections=[Section(title="t", blocks=[Chart(title="empty", figure=figure)])],
    )
    assert "empty" in render(report)
