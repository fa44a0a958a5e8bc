"""The timeline of one step: a lane a rank, with a bar for each thing that it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from weft.report.colours import KIND_COLOURS, kind_colour
from weft.report.figures.frame import lanes_height, new_figure
from weft.report.text import label


@dataclass(frozen=True, kw_only=True)
class TimelineEvent:
    """``rank`` was busy with ``name`` from ``start_us`` to ``end_us``.

    ``kind`` gives the colour: an operation (``all_reduce``, …), ``compute``,
    ``wait``, ``transfer``, ``host`` or ``idle``. A ``step`` lies behind what happens in it.
    """

    rank: int
    name: str
    kind: str
    start_us: float
    end_us: float


def step_timeline(events: Sequence[TimelineEvent]) -> go.Figure:
    """All events on one time axis that starts at the first of them."""
    ranks = sorted({event.rank for event in events})
    start = min((event.start_us for event in events), default=0.0)
    figure = new_figure(x_title="time in the step (µs)", height=lanes_height(len(ranks)))
    for kind in _kinds(events):
        chosen = [event for event in events if event.kind == kind]
        figure.add_bar(
            name=label(kind),
            x=[event.end_us - event.start_us for event in chosen],
            base=[event.start_us - start for event in chosen],
            y=[f"rank {event.rank}" for event in chosen],
            orientation="h",
            marker={"color": kind_colour(kind), "line": {"width": 0}},
            customdata=[label(event.name) for event in chosen],
            hovertemplate="%{customdata}<br>%{x:,.1f} µs from %{base:,.1f} µs<extra></extra>",
        )
    figure.update_layout(barmode="overlay", bargap=0.3, showlegend=True)
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[f"rank {rank}" for rank in ranks],
        autorange="reversed",
        showgrid=False,
        ticksuffix="  ",
    )
    figure.update_xaxes(rangemode="tozero")
    return figure


def _kinds(events: Sequence[TimelineEvent]) -> list[str]:
    present = {event.kind: None for event in events}
    background = [kind for kind in ("step", "idle", "host", "compute") if kind in present]
    known = [kind for kind in KIND_COLOURS if kind in present and kind not in background]
    rest = [kind for kind in present if kind not in KIND_COLOURS]
    return [*background, *known, *rest]
