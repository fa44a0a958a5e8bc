"""What all figures share: an empty figure in the page's style, and axes of bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import plotly.graph_objects as go

from weft.report.text import binary_bytes

_BAR_HEIGHT: Final = 34
_FRAME_HEIGHT: Final = 88


def new_figure(*, x_title: str, y_title: str | None = None, height: int = 320) -> go.Figure:
    """An empty figure of ``height`` pixels.

    The page adds the colours of text and grid, and sets the legend above the plot.
    """
    figure = go.Figure()
    figure.update_layout(
        template={"layout": {}},
        height=height,
        xaxis={"title": {"text": x_title}, "zeroline": False},
        yaxis={"title": {"text": y_title}, "zeroline": False},
        hovermode="closest",
    )
    return figure


def lanes_height(num_lanes: int) -> int:
    """Pixels for ``num_lanes`` horizontal bars and their frame."""
    return _FRAME_HEIGHT + _BAR_HEIGHT * max(num_lanes, 2)


def byte_sizes_axis(sizes: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis (base 2) that names every power of two that is near a message."""
    exponents = [math.log2(size) for size in sizes if size > 0] or [10.0]
    low, high = math.floor(min(exponents)), math.ceil(max(exponents))
    ticks = range(low, high + 1, max(1, math.ceil((high - low) / 8)))
    return {
        "type": "log",
        "tickvals": [2.0**tick for tick in ticks],
        "ticktext": [binary_bytes(2.0**tick) for tick in ticks],
        "range": [(low - 0.6) * math.log10(2), (high + 0.6) * math.log10(2)],
    }
