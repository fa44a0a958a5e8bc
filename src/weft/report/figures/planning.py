"""Layouts against each other, and predictions against measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from weft.report.colours import ACCENT, NEUTRAL, series_colour
from weft.report.figures.frame import lanes_height, new_figure
from weft.report.text import label, number


@dataclass(frozen=True, kw_only=True)
class LayoutPoint:
    """One layout's speed for a user and its throughput for the owner of the GPUs.

    ``throughput_per_gpu`` is in output tokens per second and GPU. ``on_front`` marks
    the layouts that no other one beats in both.
    """

    name: str
    tpot_ms: float
    throughput_per_gpu: float
    on_front: bool = False
    detail: str = ""


def pareto_front(points: Sequence[LayoutPoint]) -> go.Figure:
    """Throughput per GPU against TPOT; the layouts on the front are named and joined."""
    figure = new_figure(
        x_title="TPOT (ms), lower is better",
        y_title="tokens/s per GPU, higher is better",
        height=420,
    )
    front = sorted((point for point in points if point.on_front), key=lambda point: point.tpot_ms)
    others = [point for point in points if not point.on_front]
    _add_layouts(figure, "other layouts", others, NEUTRAL, mode="markers")
    _add_layouts(figure, "Pareto front", front, ACCENT, mode="lines+markers+text")
    figure.update_layout(showlegend=True)
    figure.update_xaxes(**_padded_axis([point.tpot_ms for point in points]))
    figure.update_yaxes(rangemode="tozero")
    return figure


def _padded_axis(values: Sequence[float]) -> dict[str, Any]:
    """Room for the names to the left of their points; logarithmic from a factor of five."""
    if not values:
        return {}
    low, high = min(values), max(values)
    is_wide = low > 0 and high > 5 * low
    if is_wide:
        low, high = math.log10(low), math.log10(high)
    width = (high - low) or abs(high) or 1.0
    axis = {"range": [low - 0.25 * width, high + 0.06 * width]}
    return axis | ({"type": "log", "dtick": "D2", "tickformat": "~g"} if is_wide else {})


def _add_layouts(
    figure: go.Figure, name: str, points: Sequence[LayoutPoint], colour: str, mode: str
) -> None:
    if not points:
        return
    figure.add_scatter(
        name=name,
        x=[point.tpot_ms for point in points],
        y=[point.throughput_per_gpu for point in points],
        mode=mode,
        text=[label(point.name) for point in points],
        textposition="top left",
        cliponaxis=False,
        line={"color": colour, "width": 1.5},
        marker={"color": colour, "size": 9},
        customdata=[f"<br>{label(point.detail)}" if point.detail else "" for point in points],
        hovertemplate=(
            "%{text}<br>TPOT %{x:,.4g} ms, %{y:,.4g} tokens/s per GPU%{customdata}<extra></extra>"
        ),
    )


@dataclass(frozen=True, kw_only=True)
class PredictedPoint:
    """A predicted value with its interval beside what was measured."""

    name: str
    predicted: float
    low: float
    high: float
    measured: float | None = None


def predicted_and_measured(points: Sequence[PredictedPoint], *, x_title: str) -> go.Figure:
    """One lane a case: a dot with its interval, and a diamond for the measurement.

    ``x_title`` names the quantity and its unit.
    """
    figure = new_figure(x_title=x_title, height=lanes_height(len(points)))
    _add_predictions(figure, points)
    measured = [point for point in points if point.measured is not None]
    figure.add_scatter(
        name="measured",
        x=[point.measured for point in measured],
        y=[label(point.name) for point in measured],
        mode="markers",
        marker={"color": series_colour(1), "size": 10, "symbol": "diamond"},
        hovertemplate="%{y}<br>measured %{x:,.5g}<extra></extra>",
    )
    figure.update_layout(showlegend=True)
    figure.update_yaxes(
        autorange="reversed",
        type="category",
        categoryorder="array",
        categoryarray=[label(point.name) for point in points],
        ticksuffix="  ",
    )
    figure.update_xaxes(**_value_axis(points))
    return figure


def _value_axis(points: Sequence[PredictedPoint]) -> dict[str, Any]:
    """From zero; logarithmic where the values differ by more than a factor of twenty."""
    shown = [value for point in points for value in (point.low, point.high, point.measured)]
    values = [value for value in shown if value is not None]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        return {"type": "log", "dtick": 1, "tickformat": "~g"}
    return {"rangemode": "tozero"}


def _add_predictions(figure: go.Figure, points: Sequence[PredictedPoint]) -> None:
    figure.add_scatter(
        name="predicted, with interval",
        x=[point.predicted for point in points],
        y=[label(point.name) for point in points],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [point.high - point.predicted for point in points],
            "arrayminus": [point.predicted - point.low for point in points],
            "thickness": 3,
            "width": 5,
            "color": ACCENT,
        },
        mode="markers",
        marker={"color": ACCENT, "size": 9},
        customdata=[f"{number(point.low)} to {number(point.high)}" for point in points],
        hovertemplate="%{y}<br>predicted %{x:,.5g} (%{customdata})<extra></extra>",
    )
