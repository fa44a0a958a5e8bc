"""The HTML report of one run: figures by definition, distributions, timeline, the client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from weft.bench.serving.definitions import DEFINITIONS
from weft.bench.serving.figures import METRICS, PERCENTS
from weft.bench.serving.runner import RunOutcome
from weft.report import Badge, Cell, Chart, Facts, Prose, Report, Section, Table
from weft.report.colours import series_colour
from weft.report.figures.frame import new_figure

MOST_LAG_MS = 5.0
_CURVE_POINTS = 400


def serve_report(document: Mapping[str, Any], outcome: RunOutcome) -> Report:
    """A page from the run's JSON and its records."""
    requests = document["requests"]
    failed = requests["failed"]
    rate = document["throughput"]["requests_per_s"] or 0.0
    return Report(
        title=f"Serving benchmark: {document['target']['model']}",
        summary=(
            f"{requests['completed']:,} of {requests['offered']:,} requests completed, "
            f"{rate:,.1f} requests/s"
        ),
        sections=[
            Section(title="Figures by definition", blocks=_figure_blocks(document)),
            Section(title="Distributions", blocks=_distributions(outcome)),
            Section(title="Load and client", blocks=_client_blocks(document, outcome)),
        ],
        verdict=Badge(
            text="all requests completed" if failed == 0 else f"{failed:,} failed",
            tone="good" if failed == 0 else "bad",
        ),
    )


def figure_rows(document: Mapping[str, Any]) -> list[dict[str, Cell]]:
    """One row a metric and definition, milliseconds; shared with the command's table."""
    rows: list[dict[str, Cell]] = []
    for metric in METRICS:
        for name, under in document["definitions"].items():
            summary = under.get(f"{metric}_ms")
            rows.append(_figure_row(metric, name, summary))
    return rows


def _figure_row(metric: str, name: str, summary: Mapping[str, Any] | None) -> dict[str, Cell]:
    row: dict[str, Cell] = {"metric": f"{metric}_ms", "definition": name}
    for column in ("mean", *(f"p{percent:g}" for percent in PERCENTS)):
        row[column] = round(summary[column]["value"], 4) if summary else None
    row["p99_interval"] = _interval(summary["p99"]) if summary else None
    row["max"] = round(summary["max"], 4) if summary else None
    return row


def _interval(estimate: Mapping[str, float | None]) -> str:
    low, high = (
        "?" if value is None else f"{value:,.4g}" for value in (estimate["low"], estimate["high"])
    )
    return f"{low} to {high}"


def _figure_blocks(document: Mapping[str, Any]) -> list[Prose | Table]:
    stated = [
        {"definition": name, "of": key, "means": text}
        for name, under in document["definitions"].items()
        for key, text in under["stated"].items()
    ]
    blocks: list[Prose | Table] = [
        Table(
            caption="Milliseconds, completed requests",
            rows=figure_rows(document),
            note="Interval: 95 %; a question mark where the samples are too few to bound it.",
        )
    ]
    goodput = goodput_rows(document)
    if goodput:
        blocks.append(Table(caption="Goodput", rows=goodput))
    communication = communication_rows(document)
    if communication:
        blocks.append(
            Table(
                caption="Inside collectives, mean of the requests",
                rows=communication,
                note="A request takes from each engine step its share of that step's communication.",
            )
        )
    blocks.append(Table(caption="What each definition states", rows=stated, folded=True))
    return blocks


def goodput_rows(document: Mapping[str, Any]) -> list[dict[str, Cell]]:
    """Requests within the limits by definition; empty where no limit was given."""
    return [
        {
            "definition": name,
            "good": under["goodput"]["num_good"],
            "judged": under["goodput"]["num_judged"],
            "share": under["goodput"]["share"],
            "requests_per_s": under["goodput"]["requests_per_s"],
        }
        for name, under in document["definitions"].items()
        if "goodput" in under
    ]


def communication_rows(document: Mapping[str, Any]) -> list[dict[str, Cell]]:
    """TTFT and TPOT with their parts inside collectives; empty without a profile."""
    joined = document.get("communication")
    if not joined:
        return []
    rows: list[dict[str, Cell]] = []
    for metric in ("ttft", "tpot"):
        part = joined[metric]
        total = {"phase": "all", "op": "all", "mean_ms": part["communication_ms"]}
        parts = (total | {"share": part["share"]}, *part["by"])
        rows.extend({"of": metric, "of_ms": part["mean_ms"], **row} for row in parts)
    return rows


def _distributions(outcome: RunOutcome) -> list[Chart]:
    charts = []
    for metric in METRICS:
        figure = new_figure(x_title=f"{metric.upper()} (ms)", y_title="share of samples")
        for index, (name, definition) in enumerate(DEFINITIONS.items()):
            measured = [definition.measure(one) for one in outcome.records if one.completed]
            values = [value for one in measured if one for value in _values(one, metric)]
            _add_curve(figure, name, values, index)
        charts.append(
            Chart(
                title=f"{metric.upper()} by definition",
                figure=figure,
                note="Share of samples at or below the value.",
            )
        )
    return charts


def _values(one: Any, metric: str) -> Sequence[float]:
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


def _client_blocks(document: Mapping[str, Any], outcome: RunOutcome) -> list[Any]:
    client = document["client"]
    blocks: list[Any] = [Facts(items=_facts(document)), Prose(text=lag_verdict(client))]
    blocks.append(_timeline(outcome))
    errors = document["requests"]["errors"]
    if errors:
        rows = [{"error": text, "requests": count} for text, count in errors.items()]
        blocks.append(Table(caption="Failures", rows=rows))
    return blocks


def lag_verdict(client: Mapping[str, Any]) -> str:
    """One sentence on whether the client itself was fast enough to be believed."""
    lag = client["send_lag_ms"]
    p99 = lag["p99"] if lag else 0.0
    share = (client["cpu_share_of_a_core"] or 0.0) * 100
    verdict = (
        "the client kept up"
        if p99 <= MOST_LAG_MS
        else "THE CLIENT WAS LATE: lower the load or give it a core of its own"
    )
    return f"client send lag p99 {p99:.2f} ms, {share:.0f} % of a core: {verdict}"


def _facts(document: Mapping[str, Any]) -> dict[str, Cell]:
    client, throughput = document["client"], document["throughput"]
    return {
        "server": document["target"]["url"],
        "load": ", ".join(f"{k} {v}" for k, v in document["load"].items() if v is not None),
        "duration (s)": round(document["duration_s"], 3),
        **{name: round(value, 3) for name, value in throughput.items() if value is not None},
        "client CPU a request (µs)": round(client["cpu_us_per_request"], 1),
        "event loop": client["event_loop"],
    }


def _timeline(outcome: RunOutcome) -> Chart:
    figure = new_figure(x_title="scheduled (s after the start)", y_title="milliseconds")
    kept = outcome.records[:: max(1, len(outcome.records) // 4000)]
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
