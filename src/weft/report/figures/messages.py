"""How large the messages are, and how the volume grows with the decode length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from weft.report.colours import kind_colour, series_colour
from weft.report.figures.frame import new_figure
from weft.report.text import binary_bytes, decimal_bytes, label


def message_sizes(counts: Mapping[str, Mapping[int, int]]) -> go.Figure:
    """Calls by message size: ``{"all_reduce": {8192: 8255, …}, …}`` (bytes to calls).

    The bins are powers of two; both axes are logarithmic, because a prefill sends
    few large messages and the decode steps thousands of small ones.
    """
    figure = new_figure(x_title="message size", y_title="calls")
    bins = {op: _power_bins(sizes) for op, sizes in counts.items()}
    for op, calls in bins.items():
        places = [_place(op, exponent, bins) for exponent in calls]
        figure.add_bar(
            name=label(op),
            x=list(calls),
            y=list(calls.values()),
            offset=[offset for offset, _ in places],
            width=[width for _, width in places],
            marker={"color": kind_colour(op), "line": {"width": 0}},
            customdata=[_bin_text(exponent) for exponent in calls],
            hovertemplate="%{customdata}: %{y:,} calls",
        )
    figure.update_layout(barmode="overlay", showlegend=True)
    figure.update_xaxes(**_exponent_axis(bins), showgrid=False)
    most = max((count for calls in bins.values() for count in calls.values()), default=1)
    figure.update_yaxes(
        type="log", dtick=1, tickformat="~s", range=[math.log10(0.6), math.log10(most * 2)]
    )
    return figure


def _place(op: str, exponent: int, bins: Mapping[str, Mapping[int, int]]) -> tuple[float, float]:
    """Offset and width of a bar: the operations that have this bin share its place."""
    sharing = [name for name, calls in bins.items() if exponent in calls]
    width = 0.8 / len(sharing)
    return -0.4 + width * sharing.index(op), width


def _exponent_axis(bins: Mapping[str, Mapping[int, int]]) -> dict[str, Any]:
    exponents = [exponent for calls in bins.values() for exponent in calls] or [10]
    low, high = min(exponents), max(exponents)
    ticks = list(range(high, low - 1, -math.ceil((high - low + 1) / 9)))
    names = [binary_bytes(2**tick) for tick in ticks]
    return {"tickvals": ticks, "ticktext": names, "range": [low - 0.7, high + 0.7]}


def _power_bins(sizes: Mapping[int, int]) -> dict[int, int]:
    """Calls by floor(log2(bytes)); empty messages are left out."""
    bins: dict[int, int] = {}
    for size, count in sorted(sizes.items()):
        if size > 0 and count > 0:
            exponent = size.bit_length() - 1
            bins[exponent] = bins.get(exponent, 0) + count
    return bins


def _bin_text(exponent: int) -> str:
    return f"{binary_bytes(2**exponent)} to {binary_bytes(2 ** (exponent + 1))}"


def volume_by_decode_length(lines: Mapping[str, Sequence[tuple[int, float]]]) -> go.Figure:
    """Volume of a request against its decode tokens, one line a layout: (tokens, bytes)."""
    figure = line_chart(lines, "decode tokens", "volume (bytes)")
    for line, points in zip(figure.data, lines.values(), strict=True):
        line.customdata = [decimal_bytes(size) for _, size in points]
        line.hovertemplate = "%{x:,} tokens: %{customdata}<extra></extra>"
    figure.update_yaxes(tickformat="~s", ticksuffix="B")
    return figure


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str
) -> go.Figure:
    """Points joined in their order, one line a name, both axes from zero."""
    figure = new_figure(x_title=x_title, y_title=y_title)
    for index, (name, points) in enumerate(series.items()):
        figure.add_scatter(
            name=label(name),
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines+markers",
            line={"color": series_colour(index), "width": 2},
            marker={"size": 6},
        )
    figure.update_layout(showlegend=True)
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(rangemode="tozero", showgrid=False)
    return figure
