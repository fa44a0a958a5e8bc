"""The figures of weft's reports: pure functions from plain data to Plotly figures.

Every function takes numbers in the unit that its parameter names and returns a
figure without a title (the page sets the title above it). Names may be any text.
"""

from __future__ import annotations

from weft.report.figures.bars import (
    grouped_bars,
    stacked_bars,
    time_share,
    volume_by_layout,
    waiting_by_rank,
)
from weft.report.figures.frame import new_figure
from weft.report.figures.latency import LatencyPoint, latency_by_size
from weft.report.figures.messages import line_chart, message_sizes, volume_by_decode_length
from weft.report.figures.planning import (
    LayoutPoint,
    PredictedPoint,
    pareto_front,
    predicted_and_measured,
)
from weft.report.figures.timeline import TimelineEvent, step_timeline

__all__ = [
    "LatencyPoint",
    "LayoutPoint",
    "PredictedPoint",
    "TimelineEvent",
    "grouped_bars",
    "latency_by_size",
    "line_chart",
    "message_sizes",
    "new_figure",
    "pareto_front",
    "predicted_and_measured",
    "stacked_bars",
    "step_timeline",
    "time_share",
    "volume_by_decode_length",
    "volume_by_layout",
    "waiting_by_rank",
]
