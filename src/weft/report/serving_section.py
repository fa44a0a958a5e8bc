"""``weft bench serve`` (``weft.bench.serve/1``): weft's definitions, the others folded away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from weft.report import figures
from weft.report.blocks import (
    Answer,
    Badge,
    Block,
    Cell,
    Chart,
    Facts,
    Folded,
    Headline,
    Row,
    Section,
    Table,
)
from weft.report.node import Node
from weft.report.text import number

METRICS: Final = ("ttft", "tpot", "itl", "e2e")
MOST_LAG_MS: Final = 5.0
_ENOUGH: Final = 0.99
"""The share of requests within the limits that meets them."""
OWN: Final = "weft"
_PERCENTS: Final = (50, 90, 95, 99)
Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""By metric and definition: (milliseconds, share of samples at or below)."""


def title(bench: Node) -> str:
    return f"Serving benchmark: {bench['target.model'].text()}"


def answer(bench: Node) -> Answer:
    """Whether the limits were met, latency and throughput; failures and a late client first."""
    requests, client = bench["requests"], bench["client"]
    failed, offered = requests["failed"].integer(), requests["offered"].integer()
    rate = bench["throughput.requests_per_s"].optional_number() or 0.0
    late = is_late(client)
    warnings = [f"{failed:,} of {offered:,} requests failed"] * bool(failed)
    limits = next((row for row in goodput_rows(bench) if row["definition"] == OWN), None)
    verdict = Badge(text="all requests completed", tone="good")
    if failed or late:
        verdict = Badge(text=f"{failed:,} failed" if failed else "client was late", tone="bad")
    return Answer(
        summary=f"{requests['completed'].integer():,} of {offered:,} requests completed, "
        f"{rate:,.1f} requests/s",
        verdict=verdict,
        headlines=list(_headlines(bench, limits, offered)),
        warnings=warnings + [lag_verdict(client)] * late,
    )


def _headlines(bench: Node, limits: Row | None, offered: int) -> Iterator[Headline]:
    share = limits["share"] if limits else None
    if limits and isinstance(share, int | float):
        met = share >= _ENOUGH
        yield Headline(
            label="requests within the limits",
            value=f"{share:.1%}",
            note=f"{'met' if met else 'not met'}: {limits['good']:,} of {offered:,}",
            tone="good" if met else "bad",
        )
    for metric in ("ttft", "tpot"):
        summary = bench[f"definitions.{OWN}"][f"{metric}_ms"]
        if summary.value is not None:
            p50, p99 = (summary[f"{name}.value"].number() for name in ("p50", "p99"))
            note = f"{number(round(p50, 2))} ms in the median"
            label = f"{metric.upper()}, 99th percentile"
            yield Headline(label=label, value=f"{number(round(p99, 2))} ms", note=note)
    tokens, rate = (
        bench["throughput"][key].optional_number() or 0.0
        for key in ("output_tokens_per_s", "requests_per_s")
    )
    yield Headline(label="output tokens/s", value=f"{tokens:,.1f}", note=f"{rate:,.2f} requests/s")


def sections(
    bench: Node, curves: Curves | None = None, more: Sequence[Block] = ()
) -> list[Section]:
    """The figures under weft's definitions, the load and the client, and the other definitions.

    ``curves`` and ``more`` are drawn from the run's own records where these are at hand; else
    the distributions are drawn through the percentiles of the document.
    """
    curves = curves or _percentile_curves(bench)
    return [
        Section(title="Figures", blocks=list(_own_blocks(bench))),
        Section(title="Distributions", blocks=[*_charts(curves, OWN), *more]),
        Section(title="Load and client", blocks=list(_client_blocks(bench))),
        Section(title="Other definitions", blocks=list(_other_blocks(bench, curves))),
    ]


def figure_rows(bench: Node) -> list[dict[str, Cell]]:
    """One row a metric and definition, milliseconds; shared with the command's table."""
    return [
        _figure_row(metric, name, under[f"{metric}_ms"])
        for metric in METRICS
        for name, under in bench["definitions"].items()
    ]


def _figure_row(metric: str, name: str, summary: Node) -> dict[str, Cell]:
    row: dict[str, Cell] = {"metric": f"{metric}_ms", "definition": name}
    is_there = summary.value is not None
    for column in ("mean", *(f"p{percent}" for percent in _PERCENTS)):
        row[column] = round(summary[f"{column}.value"].number(), 4) if is_there else None
    row["p99_interval"] = _interval(summary["p99"]) if is_there else None
    row["max"] = round(summary["max"].number(), 4) if is_there else None
    return row


def _interval(estimate: Node) -> str:
    ends = [estimate[end].optional_number() for end in ("low", "high")]
    return " to ".join("?" if end is None else f"{end:,.4g}" for end in ends)


def goodput_rows(bench: Node) -> list[dict[str, Cell]]:
    """Requests within the limits by definition; empty where no limit was given."""
    return [
        {
            "definition": name,
            "good": under["goodput.num_good"].integer(),
            "judged": under["goodput.num_judged"].integer(),
            "share": under["goodput.share"].optional_number(),
            "requests_per_s": under["goodput.requests_per_s"].optional_number(),
        }
        for name, under in bench["definitions"].items()
        if "goodput" in under
    ]


def communication_rows(bench: Node) -> list[dict[str, Cell]]:
    """TTFT and TPOT with their parts inside collectives; empty without a profile."""
    rows: list[dict[str, Cell]] = []
    for metric in ("ttft", "tpot") if "communication" in bench else ():
        part = bench[f"communication.{metric}"]
        of: dict[str, Cell] = {"of": metric, "of_ms": part["mean_ms"].number()}
        total: dict[str, Cell] = {
            "phase": "all",
            "op": "all",
            "mean_ms": part["communication_ms"].number(),
            "share": part["share"].optional_number(),
        }
        rows.append(of | total)
        for row in part["by"].elements():
            names: dict[str, Cell] = {key: row[key].text() for key in ("phase", "op")}
            share = {"mean_ms": row["mean_ms"].number(), "share": row["share"].optional_number()}
            rows.append(of | names | share)
    return rows


def is_late(client: Node) -> bool:
    """Whether the client sent requests too late for its figures to be believed."""
    lag = client["send_lag_ms"]
    return lag.value is not None and lag["p99"].number() > MOST_LAG_MS


def lag_verdict(client: Node) -> str:
    """One sentence on whether the client itself was fast enough to be believed."""
    lag = client["send_lag_ms"]
    p99 = lag["p99"].number() if lag.value is not None else 0.0
    share = (client["cpu_share_of_a_core"].optional_number() or 0.0) * 100
    late = "THE CLIENT WAS LATE: lower the load or give it a core of its own"
    verdict = late if is_late(client) else "the client kept up"
    return f"client send lag p99 {p99:.2f} ms, {share:.0f} % of a core: {verdict}"


def _own_blocks(bench: Node) -> Iterator[Block]:
    rows = [row for row in figure_rows(bench) if row["definition"] == OWN]
    plain = [{key: value for key, value in row.items() if key != "definition"} for row in rows]
    note = "Interval: 95 %; a question mark where the samples are too few to bound it."
    yield Table(caption="Milliseconds, completed requests", rows=plain, note=note)
    if communication := communication_rows(bench):
        note = "A request takes from each engine step its share of that step's communication."
        caption = "Inside collectives, mean of the requests"
        yield Table(caption=caption, rows=communication, note=note)
    if errors := list(bench["requests.errors"].items()):
        failures: list[dict[str, Cell]] = [
            {"error": text, "requests": count.integer()} for text, count in errors
        ]
        yield Table(caption="Failures", rows=failures)


def _charts(curves: Curves, only: str | None = None) -> Iterator[Chart]:
    for metric, by_definition in curves.items():
        chosen = {k: curve for k, curve in by_definition.items() if only in (None, k)}
        if any(chosen.values()):
            name = "" if only else " by definition"
            figure = figures.distribution(chosen, f"{metric.upper()} (ms)")
            note = "Share of samples at or below the value."
            yield Chart(title=f"{metric.upper()}{name}", figure=figure, note=note)


def _percentile_curves(bench: Node) -> Curves:
    """Through the percentiles of the file."""
    return {
        metric: {
            name: _curve(under[f"{metric}_ms"])
            for name, under in bench["definitions"].items()
            if under[f"{metric}_ms"].value is not None
        }
        for metric in METRICS
    }


def _curve(summary: Node) -> list[tuple[float, float]]:
    middle = [(summary[f"p{percent}.value"].number(), percent / 100) for percent in _PERCENTS]
    return [(summary["min"].number(), 0.0), *middle, (summary["max"].number(), 1.0)]


def _client_blocks(bench: Node) -> Iterator[Block]:
    client = bench["client"]
    load = [f"{k} {node.cell()}" for k, node in bench["load"].items() if node.value is not None]
    rates = {key: node.optional_number() for key, node in bench["throughput"].items()}
    yield Facts(
        items={
            "server": bench["target.url"].text(),
            "load": ", ".join(load),
            "duration (s)": round(bench["duration_s"].number(), 3),
            **{name: round(value, 3) for name, value in rates.items() if value is not None},
            "client CPU a request (µs)": round(client["cpu_us_per_request"].number(), 1),
            "event loop": client["event_loop"].text(),
            "client": lag_verdict(client),
        }
    )


def _other_blocks(bench: Node, curves: Curves) -> Iterator[Block]:
    """Other benchmarks count other moments under the same names."""
    stated: list[dict[str, Cell]] = [
        {"definition": name, "of": key, "means": text.text()}
        for name, under in bench["definitions"].items()
        for key, text in under["stated"].items()
    ]
    rows = figure_rows(bench)
    yield Table(caption="Milliseconds by definition", rows=rows, folded=True)
    if goodput := goodput_rows(bench):
        yield Table(caption="Goodput by definition", rows=goodput, folded=True)
    yield Folded(title="Distributions by definition", blocks=list(_charts(curves)))
    yield Table(caption="What each definition states", rows=stated, folded=True)
