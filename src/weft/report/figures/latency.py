"""Latency of a collective against its message size, one line an algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from weft.report.colours import series_colour
from weft.report.figures.frame import byte_sizes_axis, new_figure
from weft.report.text import binary_bytes, label


@dataclass(frozen=True, kw_only=True)
class LatencyPoint:
    """What one algorithm needed for one message of ``size_bytes``."""

    algorithm: str
    size_bytes: int
    min_us: float
    median_us: float
    max_us: float


def latency_by_size(points: Sequence[LatencyPoint]) -> go.Figure:
    """Median lines on logarithmic axes; the band reaches from the minimum to the maximum."""
    figure = new_figure(x_title="message size", y_title="latency (µs)", height=400)
    algorithms = list(dict.fromkeys(point.algorithm for point in points))
    for index, algorithm in enumerate(algorithms):
        chosen = sorted(
            (point for point in points if point.algorithm == algorithm),
            key=lambda point: point.size_bytes,
        )
        _add_band(figure, chosen, series_colour(index))
        _add_line(figure, chosen, series_colour(index))
    figure.update_layout(showlegend=True)
    figure.update_xaxes(**byte_sizes_axis(point.size_bytes for point in points))
    figure.update_yaxes(type="log", tickformat="~g", minor={"showgrid": False}, dtick="D2")
    return figure


def _add_line(figure: go.Figure, points: Sequence[LatencyPoint], colour: str) -> None:
    name = label(points[0].algorithm)
    figure.add_scatter(
        name=name,
        legendgroup=name,
        x=[point.size_bytes for point in points],
        y=[point.median_us for point in points],
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 6},
        customdata=[
            f"{name} · {binary_bytes(point.size_bytes)}<br>median {point.median_us:,.5g} µs "
            f"(min {point.min_us:,.5g}, max {point.max_us:,.5g})"
            for point in points
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _add_band(figure: go.Figure, points: Sequence[LatencyPoint], colour: str) -> None:
    name = label(points[0].algorithm)
    forth, back = list(points), list(reversed(points))
    figure.add_scatter(
        legendgroup=name,
        showlegend=False,
        x=[point.size_bytes for point in forth + back],
        y=[point.max_us for point in forth] + [point.min_us for point in back],
        fill="toself",
        fillcolor=colour,
        opacity=0.18,
        mode="none",
        hoverinfo="skip",
    )
