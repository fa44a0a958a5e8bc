"""The HTML report of a run whose records are at hand: exact distributions and a timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weft.bench.serving.definitions import DEFINITIONS, RequestTimes
from weft.bench.serving.figures import METRICS
from weft.bench.serving.runner import RunOutcome
from weft.report import Chart, Report, document, figures, report_of
from weft.report.serving_section import sections

_CURVE_POINTS = 200
_MOST_POINTS = 1500


def serve_report(result: Mapping[str, Any], outcome: RunOutcome) -> Report:
    """A page from the run's JSON and its records."""
    bench = document(dict(result), "result")
    curves = {
        metric: {name: _curve(outcome, metric, name) for name in DEFINITIONS} for metric in METRICS
    }
    return replace(report_of([bench]), sections=sections(bench, curves, [_timeline(outcome)]))


def _curve(outcome: RunOutcome, metric: str, name: str) -> list[tuple[float, float]]:
    """Milliseconds and the share of samples at or below them."""
    measured = [DEFINITIONS[name].measure(one) for one in outcome.records if one.completed]
    values = [value for one in measured if one for value in _values(one, metric)]
    if not values:
        return []
    shares = np.linspace(0, 1, min(len(values), _CURVE_POINTS))
    times = (np.quantile(values, shares) * 1e3).round(5)
    return list(zip(times.tolist(), shares.round(5).tolist(), strict=True))


def _values(one: RequestTimes, metric: str) -> Sequence[float]:
    if metric == "itl":
        return list(one.itl_s)
    value = getattr(one, f"{metric}_s")
    return [] if value is None else [value]


def _timeline(outcome: RunOutcome) -> Chart:
    kept = outcome.records[:: -(-len(outcome.records) // _MOST_POINTS) or 1]
    measured = [(one, DEFINITIONS["weft"].measure(one)) for one in kept if one.completed]
    points = {
        metric.upper(): [
            (
                round(one.scheduled_s - outcome.start_s, 4),
                round(getattr(times, f"{metric}_s") * 1e3, 3),
            )
            for one, times in measured
            if times
        ]
        for metric in ("ttft", "e2e")
    }
    figure = figures.line_chart(
        points, "scheduled (s after the start)", "milliseconds", is_joined=False
    )
    return Chart(title="Each request", figure=figure, note="weft's definitions.")
