"""Sections from ``weft bench serve`` (``weft.bench.serve/1``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import plotly.graph_objects as go

from weft.report.blocks import Badge, Block, Cell, Chart, Facts, Prose, Section, Table
from weft.report.colours import series_colour
from weft.report.figures.frame import new_figure
from weft.report.node import Node

METRICS: Final = ("ttft", "tpot", "itl", "e2e")
MOST_LAG_MS: Final = 5.0
_PERCENTS: Final = (50, 90, 95, 99)


def serving_title(bench: Node) -> str:
    return f"Serving benchmark: {bench.child('target').child('model').text()}"


def serving_summary(bench: Node) -> str:
    requests = bench.child("requests")
    rate = bench.child("throughput").child("requests_per_s").optional_number() or 0.0
    return (
        f"{requests.child('completed').integer():,} of {requests.child('offered').integer():,} "
        f"requests completed, {rate:,.1f} requests/s"
    )


def serving_verdict(bench: Node) -> Badge:
    failed = bench.child("requests").child("failed").integer()
    if failed:
        return Badge(text=f"{failed:,} failed", tone="bad")
    return Badge(text="all requests completed", tone="good")


def sections_of_serving(
    bench: Node, distributions: Sequence[Block] = (), timeline: Sequence[Block] = ()
) -> list[Section]:
    """Figures by definition, their distributions, the load and the client.

    ``distributions`` and ``timeline`` are drawn from the run's own records where these are
    at hand; else the distributions are drawn through the percentiles of the document.
    """
    return [
        Section(title="Figures by definition", blocks=_figure_blocks(bench)),
        Section(title="Distributions", blocks=distributions or _percentile_charts(bench)),
        Section(title="Load and client", blocks=[*_client_blocks(bench), *timeline]),
    ]


def figure_rows(bench: Node) -> list[dict[str, Cell]]:
    """One row a metric and definition, milliseconds; shared with the command's table."""
    return [
        _figure_row(metric, name, under.child(f"{metric}_ms"))
        for metric in METRICS
        for name, under in bench.child("definitions").items()
    ]


def _figure_row(metric: str, name: str, summary: Node) -> dict[str, Cell]:
    row: dict[str, Cell] = {"metric": f"{metric}_ms", "definition": name}
    is_there = summary.value is not None
    for column in ("mean", *(f"p{percent}" for percent in _PERCENTS)):
        value = summary.child(column).child("value").number() if is_there else None
        row[column] = None if value is None else round(value, 4)
    row["p99_interval"] = _interval(summary.child("p99")) if is_there else None
    row["max"] = round(summary.child("max").number(), 4) if is_there else None
    return row


def _interval(estimate: Node) -> str:
    ends = [estimate.child(end).optional_number() for end in ("low", "high")]
    return " to ".join("?" if end is None else f"{end:,.4g}" for end in ends)


def goodput_rows(bench: Node) -> list[dict[str, Cell]]:
    """Requests within the limits by definition; empty where no limit was given."""
    return [
        {
            "definition": name,
            "good": under.child("goodput").child("num_good").integer(),
            "judged": under.child("goodput").child("num_judged").integer(),
            "share": under.child("goodput").child("share").optional_number(),
            "requests_per_s": under.child("goodput").child("requests_per_s").optional_number(),
        }
        for name, under in bench.child("definitions").items()
        if "goodput" in under
    ]


def communication_rows(bench: Node) -> list[dict[str, Cell]]:
    """TTFT and TPOT with their parts inside collectives; empty without a profile."""
    if "communication" not in bench:
        return []
    rows: list[dict[str, Cell]] = []
    for metric in ("ttft", "tpot"):
        part = bench.child("communication").child(metric)
        of: dict[str, Cell] = {"of": metric, "of_ms": part.child("mean_ms").number()}
        total: dict[str, Cell] = {
            "phase": "all",
            "op": "all",
            "mean_ms": part.child("communication_ms").number(),
            "share": part.child("share").optional_number(),
        }
        rows.append(of | total)
        rows += [of | _part_cells(row) for row in part.child("by").elements()]
    return rows


def _part_cells(row: Node) -> dict[str, Cell]:
    return {
        "phase": row.child("phase").text(),
        "op": row.child("op").text(),
        "mean_ms": row.child("mean_ms").number(),
        "share": row.child("share").optional_number(),
    }


def lag_verdict(client: Node) -> str:
    """One sentence on whether the client itself was fast enough to be believed."""
    lag = client.child("send_lag_ms")
    p99 = lag.child("p99").number() if lag.value is not None else 0.0
    share = (client.child("cpu_share_of_a_core").optional_number() or 0.0) * 100
    verdict = (
        "the client kept up"
        if p99 <= MOST_LAG_MS
        else "THE CLIENT WAS LATE: lower the load or give it a core of its own"
    )
    return f"client send lag p99 {p99:.2f} ms, {share:.0f} % of a core: {verdict}"


def _figure_blocks(bench: Node) -> list[Block]:
    stated: list[dict[str, Cell]] = [
        {"definition": name, "of": key, "means": text.text()}
        for name, under in bench.child("definitions").items()
        for key, text in under.child("stated").items()
    ]
    blocks: list[Block] = [
        Table(
            caption="Milliseconds, completed requests",
            rows=figure_rows(bench),
            note="Interval: 95 %; a question mark where the samples are too few to bound it.",
        )
    ]
    if goodput := goodput_rows(bench):
        blocks.append(Table(caption="Goodput", rows=goodput))
    if communication := communication_rows(bench):
        note = "A request takes from each engine step its share of that step's communication."
        caption = "Inside collectives, mean of the requests"
        blocks.append(Table(caption=caption, rows=communication, note=note))
    blocks.append(Table(caption="What each definition states", rows=stated, folded=True))
    return blocks


def _percentile_charts(bench: Node) -> list[Block]:
    return [
        Chart(
            title=f"{metric.upper()} by definition",
            figure=_percentile_figure(bench, metric),
            note="Share of samples at or below the value, through the percentiles of the file.",
        )
        for metric in METRICS
    ]


def _percentile_figure(bench: Node, metric: str) -> go.Figure:
    figure = new_figure(x_title=f"{metric.upper()} (ms)", y_title="share of samples")
    for index, (name, under) in enumerate(bench.child("definitions").items()):
        summary = under.child(f"{metric}_ms")
        if summary.value is None:
            continue
        points = [(summary.child("min").number(), 0.0)]
        for percent in _PERCENTS:
            value = summary.child(f"p{percent}").child("value").number()
            points.append((value, percent / 100))
        points.append((summary.child("max").number(), 1.0))
        figure.add_scatter(
            name=name,
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines+markers",
            line={"color": series_colour(index), "width": 2},
        )
    return figure


def _client_blocks(bench: Node) -> list[Block]:
    blocks: list[Block] = [
        Facts(items=_facts(bench)),
        Prose(text=lag_verdict(bench.child("client"))),
    ]
    errors = list(bench.child("requests").child("errors").items())
    if errors:
        rows: list[dict[str, Cell]] = [
            {"error": text, "requests": count.integer()} for text, count in errors
        ]
        blocks.append(Table(caption="Failures", rows=rows))
    return blocks


def _facts(bench: Node) -> dict[str, Cell]:
    client = bench.child("client")
    settings = bench.child("load").items()
    load = [f"{key} {node.cell()}" for key, node in settings if node.value is not None]
    rates = {key: node.optional_number() for key, node in bench.child("throughput").items()}
    return {
        "server": bench.child("target").child("url").text(),
        "load": ", ".join(load),
        "duration (s)": round(bench.child("duration_s").number(), 3),
        **{name: round(value, 3) for name, value in rates.items() if value is not None},
        "client CPU a request (µs)": round(client.child("cpu_us_per_request").number(), 1),
        "event loop": client.child("event_loop").text(),
    }
