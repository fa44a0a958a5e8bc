"""Stacked bars: volume by layout and operation, time by kind, waiting by rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from weft.report.colours import KIND_COLOURS, kind_colour, series_colour
from weft.report.figures.frame import lanes_height, new_figure
from weft.report.text import decimal_bytes, label, number


def volume_by_layout(volumes: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Bytes by operation, one bar a layout: ``{"tp2": {"all_reduce": 1.3e8, …}, …}``."""
    figure = stacked_bars(volumes, x_title="volume (bytes)", text_of=decimal_bytes)
    figure.update_xaxes(tickformat="~s", ticksuffix="B")
    return figure


def stacked_bars(
    values: Mapping[str, Mapping[str, float]],
    *,
    x_title: str,
    text_of: Callable[[float], str] = number,
) -> go.Figure:
    """One horizontal bar a name, stacked by kind of operation or time.

    ``x_title`` says what is measured and its unit; ``text_of`` writes a value.
    """
    figure = new_figure(x_title=x_title, height=lanes_height(len(values)))
    for kind in _kinds(values):
        sizes = [parts.get(kind, 0.0) for parts in values.values()]
        figure.add_bar(
            name=label(kind),
            x=sizes,
            y=[label(name) for name in values],
            orientation="h",
            marker={"color": kind_colour(kind), "line": {"width": 0}},
            customdata=[text_of(size) for size in sizes],
            hovertemplate=f"%{{y}} · {_template_text(kind)}: %{{customdata}}<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.35, showlegend=True)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, ticksuffix="  ")
    return figure


def grouped_bars(series: Mapping[str, Mapping[str, float]], y_title: str) -> go.Figure:
    """Bars side by side: ``{"vllm": {"tp2": 12.5, …}, …}``, one colour a series."""
    figure = new_figure(x_title="layout", y_title=y_title)
    for index, (name, values) in enumerate(series.items()):
        figure.add_bar(
            name=label(name),
            x=[label(place) for place in values],
            y=list(values.values()),
            marker={"color": series_colour(index), "line": {"width": 0}},
            hovertemplate=f"{_template_text(name)} %{{x}}: %{{y:,.5g}}<extra></extra>",
        )
    figure.update_layout(barmode="group", showlegend=True)
    figure.update_xaxes(type="category", showgrid=False)
    return figure


def waiting_by_rank(times_us: Mapping[int, Mapping[str, float]]) -> go.Figure:
    """Microseconds of ``wait`` and ``transfer`` in collectives, one bar a rank."""
    named = {f"rank {rank}": times_us[rank] for rank in sorted(times_us)}
    return stacked_bars(named, x_title="time in collectives (µs)")


def time_share(steps: Sequence[tuple[str, Mapping[str, float]]]) -> go.Figure:
    """Where the time of each step went: (step's label, microseconds by kind), in order."""
    figure = new_figure(x_title="step", y_title="time (µs)")
    positions = list(range(len(steps)))
    for kind in _kinds(dict(enumerate(parts for _, parts in steps))):
        figure.add_bar(
            name=label(kind),
            x=positions,
            y=[parts.get(kind, 0.0) for _, parts in steps],
            marker={"color": kind_colour(kind), "line": {"width": 0}},
            customdata=[label(name) for name, _ in steps],
            hovertemplate=f"%{{customdata}} · {_template_text(kind)}: %{{y:,.1f}} µs<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.12, showlegend=True)
    figure.update_xaxes(showgrid=False)
    return figure


def _kinds(values: Mapping[Any, Mapping[str, float]]) -> list[str]:
    """Kinds that occur, the known ones in their fixed order and then the others."""
    present = {kind: None for parts in values.values() for kind, value in parts.items() if value}
    known = [kind for kind in KIND_COLOURS if kind in present]
    return known + [kind for kind in present if kind not in KIND_COLOURS]


def _template_text(text: str) -> str:
    """Text inside a hover template, where ``%{`` would start a variable."""
    return label(text).replace("%", "&#37;")
