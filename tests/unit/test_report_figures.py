"""Figures: they show exactly the numbers that went in, in one colour a meaning."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.report import figures
from weft.report.colours import KIND_COLOURS, OPERATION_COLOURS
from weft.report.figures import LatencyPoint, LayoutPoint, PredictedPoint, TimelineEvent
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
    for trace in figure.data:
        assert trace.marker.color == OPERATION_COLOURS[trace.name]
        for name, size in zip(trace.y, trace.x, strict=True):
            shown[name] += size
    for name, parts in volumes.items():
        if any(volumes.values()):
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
    for trace in figure.data:
        sizes = {size: count for size, count in counts[trace.name].items() if size}
        assert sum(trace.y or ()) == sum(sizes.values())
        for exponent, count in zip(trace.x or (), trace.y or (), strict=True):
            inside = [c for size, c in sizes.items() if 2**exponent <= size < 2 ** (exponent + 1)]
            assert count == sum(inside)


def test_bars_of_one_bin_do_not_overlap() -> None:
    figure = figures.message_sizes({"all_reduce": {8192: 3}, "send": {8192: 4, 64: 1}})
    first, second = figure.data
    assert first.offset[0] + first.width[0] <= second.offset[-1] + 1e-9
    assert second.width[0] == pytest.approx(2 * second.width[-1])


def test_volume_by_decode_length_keeps_points() -> None:
    figure = figures.volume_by_decode_length({"tp2": [(128, 1e6), (256, 1.5e6)]})
    assert figure.data[0].x == (128, 256)
    assert figure.data[0].y == (1e6, 1.5e6)


def test_timeline_starts_at_zero_and_orders_ranks() -> None:
    events = [
        TimelineEvent(rank=10, name="layer", kind="compute", start_us=105.0, end_us=110.0),
        TimelineEvent(rank=2, name="sum", kind="all_reduce", start_us=100.0, end_us=104.0),
        TimelineEvent(rank=2, name="?", kind="other", start_us=104.0, end_us=105.0),
    ]
    figure = figures.step_timeline(events)
    assert list(figure.layout.yaxis.categoryarray) == ["rank 2", "rank 10"]
    spans = {trace.name: (trace.base[0], trace.base[0] + trace.x[0]) for trace in figure.data}
    assert spans == {"compute": (5.0, 10.0), "all_reduce": (0.0, 4.0), "other": (4.0, 5.0)}


def test_a_step_lies_behind_its_calls() -> None:
    kinds = ("all_reduce", "compute", "step")
    events = [
        TimelineEvent(rank=0, name="n", kind=kind, start_us=0.0, end_us=9.0) for kind in kinds
    ]
    drawn = [trace.name for trace in figures.step_timeline(events).data]
    assert drawn == ["step", "compute", "all_reduce"]


def test_time_share_stacks_in_step_order() -> None:
    steps = [("prefill", {"compute": 9.0, "all_reduce": 1.0}), ("decode 1", {"compute": 2.0})]
    figure = figures.time_share(steps)
    assert {trace.name: tuple(trace.y) for trace in figure.data} == {
        "compute": (9.0, 2.0),
        "all_reduce": (1.0, 0.0),
    }


def test_waiting_by_rank_sorts_ranks() -> None:
    figure = figures.waiting_by_rank({10: {"wait": 1.0, "transfer": 2.0}, 9: {"wait": 3.0}})
    assert figure.data[0].y == ("rank 9", "rank 10")
    assert figure.data[0].marker.color == KIND_COLOURS["wait"]


def test_latency_lines_and_bands() -> None:
    points = [
        LatencyPoint(algorithm=name, size_bytes=size, min_us=1.0, median_us=2.0, max_us=4.0)
        for name in ("ring", "one-shot")
        for size in (16384, 8192)
    ]
    figure = figures.latency_by_size(points)
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    lines = [trace for trace in figure.data if trace.fill is None]
    assert [line.name for line in lines] == ["ring", "one-shot"]
    assert lines[0].x == (8192, 16384)
    assert bands[0].y == (4.0, 4.0, 1.0, 1.0)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


def test_pareto_front_is_joined_in_order() -> None:
    points = [
        LayoutPoint(name="tp2", tpot_ms=9.0, throughput_per_gpu=50.0, on_front=True),
        LayoutPoint(name="tp8", tpot_ms=4.0, throughput_per_gpu=20.0, on_front=True),
        LayoutPoint(name="pp8", tpot_ms=9.0, throughput_per_gpu=10.0, detail="bubbles"),
    ]
    others, front = figures.pareto_front(points).data
    assert front.text == ("tp8", "tp2")
    assert others.customdata == ("<br>bubbles",)
    assert len(figures.pareto_front([]).data) == 0


def test_predicted_and_measured_intervals() -> None:
    points = [
        PredictedPoint(name="a", predicted=5.0, low=4.0, high=7.0, measured=6.0),
        PredictedPoint(name="b", predicted=5.0, low=4.0, high=7.0),
    ]
    predicted, measured = figures.predicted_and_measured(points, x_title="TPOT (ms)").data
    assert predicted.error_x.array == (2.0, 2.0)
    assert predicted.error_x.arrayminus == (1.0, 1.0)
    assert measured.x == (6.0,)


@pytest.mark.parametrize(
    "figure",
    [
        figures.volume_by_layout({}),
        figures.volume_by_decode_length({}),
        figures.message_sizes({}),
        figures.step_timeline([]),
        figures.time_share([]),
        figures.waiting_by_rank({}),
        figures.latency_by_size([]),
        figures.pareto_front([]),
        figures.predicted_and_measured([], x_title="x"),
    ],
)
def test_nothing_to_show_is_an_empty_figure(figure: object) -> None:
    assert figure.to_json(engine="json")  # type: ignore[attr-defined]
