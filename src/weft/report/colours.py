"""One colour for one meaning, in every figure of every report.

The tones are of middle lightness, so that they read on a light and on a dark page.
"""

from __future__ import annotations

from typing import Final

OPERATION_COLOURS: Final = {
    "all_reduce": "#3f7fc9",
    "all_gather": "#2a9d8f",
    "reduce_scatter": "#8d6cc4",
    "reduce": "#5c6bc0",
    "gather": "#d3a02a",
    "scatter": "#a67c2d",
    "broadcast": "#cf5c82",
    "send": "#de7a3c",
    "recv": "#b3805e",
    "all_to_all": "#6fa34a",
}

KIND_COLOURS: Final = {
    "compute": "#94a0b0",
    "matmul": "#94a0b0",
    "attention": "#71829c",
    "elementwise": "#bcc4ce",
    "communication": "#3f7fc9",
    **OPERATION_COLOURS,
    "host": "#7d7468",
    "fixed": "#7d7468",
    "wait": "#d8564f",
    "waiting": "#d8564f",
    "transfer": "#3f7fc9",
    "idle": "#c3c9d1",
    "step": "#b4bcc7",
}

SERIES_COLOURS: Final = (
    "#5563c1",
    "#c9553f",
    "#3b9457",
    "#b7842a",
    "#8a55ab",
    "#2c93a8",
    "#b5507f",
    "#84903a",
)

NEUTRAL: Final = "#94a0b0"
ACCENT: Final = "#3f7fc9"


def kind_colour(kind: str) -> str:
    """The colour of an operation or of a kind of time; unknown kinds are neutral."""
    return KIND_COLOURS.get(kind, NEUTRAL)


def series_colour(index: int) -> str:
    """The colour of the ``index``-th line of a figure whose lines are not operations."""
    return SERIES_COLOURS[index % len(SERIES_COLOURS)]
