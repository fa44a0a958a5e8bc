"""The HTML report of a run whose records are at hand: exact distributions and a timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from weft.bench.serving.definitions import DEFINITIONS, RequestTimes
from weft.bench.serving.figures import METRICS
from weft.bench.serving.runner import RunOutcome
from weft.report import Chart, Report, document, report_of
from weft.report.colours import series_colour
from weft.report.figures.frame import new_figure
from weft.report.serving_section import sections_of_serving

_CURVE_POINTS = 400
_MOST_POINTS = 4000


def serve_report(result: Mapping[str, Any], outcome: RunOutcome) -> Report:
    """A page from the run's JSON and its records."""
    bench = document(dict(result), "result")
    sections = sections_of_serving(bench, _distributions(outcome), [_timeline(outcome)])
    return replace(report_of([bench]), sections=sections)


def _distributions(outcome: RunOutcome) -> list[Chart]:
    return [
        Chart(
            title=f"{metric.upper()} by definition",
            figure=_distribution(outcome, metric),
            note="Share of samples at or below the value.",
        )
        for metric in METRICS
    ]


def _distribution(outcome: RunOutcome, metric: str) -> go.Figure:
    figure = new_figure(x_title=f"{metric.upper()} (ms)", y_title="share of samples")
    for index, (name, definition) in enumerate(DEFINITIONS.items()):
        measured = [definition.measure(one) for one in outcome.records if one.completed]
        values = [value for one in measured if one for value in _values(one, metric)]
        _add_curve(figure, name, values, index)
    return figure


def _values(one: RequestTimes, metric: str) -> Sequence[float]:
    if metric == "itl":
        return list(one.itl_s)
    value = getattr(one, f"{metric}_s")
    return [] if value is None else [value]


def _add_curve(figure: go.Figure, name: str, values: Sequence[float], index: int) -> None:
    if not values:
        return
    shares = np.linspace(0, 1, min(len(values), _CURVE_POINTS))
    figure.add_scatter(
        name=name,
        x=(np.quantile(values, shares) * 1e3).round(5).tolist(),
        y=shares.round(5).tolist(),
        mode="lines",
        line={"color": series_colour(index), "width": 2},
    )


def _timeline(outcome: RunOutcome) -> Chart:
    figure = new_figure(x_title="scheduled (s after the start)", y_title="milliseconds")
    kept = outcome.records[:: max(1, len(outcome.records) // _MOST_POINTS)]
    measured = [(one, DEFINITIONS["weft"].measure(one)) for one in kept if one.completed]
    for index, metric in enumerate(("ttft", "e2e")):
        figure.add_scatter(
            name=metric.upper(),
            x=[round(one.scheduled_s - outcome.start_s, 4) for one, times in measured if times],
            y=[round(getattr(times, f"{metric}_s") * 1e3, 3) for _, times in measured if times],
            mode="markers",
            marker={"size": 4, "color": series_colour(index)},
        )
    return Chart(title="Each request", figure=figure, note="weft's definitions.")
