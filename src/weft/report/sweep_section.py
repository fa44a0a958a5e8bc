"""``weft bench serve --sweep`` (``weft.bench.sweep/1``)."""

from __future__ import annotations

from weft.report import figures
from weft.report.blocks import Answer, Badge, Cell, Chart, Headline, Row, Section, Table
from weft.report.node import Node
from weft.report.serving_section import is_late
from weft.report.text import number

_METRICS = ("ttft", "tpot", "e2e")


def title(_: Node) -> str:
    return "Load against service levels"


def answer(sweep: Node) -> Answer:
    """The highest load that keeps the limits."""
    knee, rows = sweep["knee"].optional_number(), sweep_rows(sweep)
    kind, best = sweep["of"].text(), max(map(_goodput, rows), default=0.0)
    held = [row for row in rows if knee is not None and row[kind] == round(knee, 4)]
    late = [
        number(point["load"].number())
        for point in sweep["points"].elements()
        if "client" in point["result"] and is_late(point["result.client"])
    ]
    unit = "requests/s" if kind == "rate" else "open requests"
    return Answer(
        summary=sweep_summary(sweep),
        verdict=Badge(
            text="no load holds" if knee is None else "knee found",
            tone="bad" if knee is None else "good",
        ),
        headlines=[
            Headline(
                label=f"highest load that holds, {unit}",
                value="none" if knee is None else number(round(knee, 4)),
                tone="bad" if knee is None else "good",
            ),
            Headline(label="most goodput", value=number(round(best, 3)), note="requests/s"),
            *(
                Headline(label=f"{metric.upper()} there, 99th percentile", value=f"{shown} ms")
                for metric in ("ttft", "tpot")
                for row in held[:1]
                if (shown := row[f"{metric}_p99_ms"]) is not None
            ),
        ],
        warnings=[f"the client was late at {kind} {', '.join(late)}"] if late else (),
    )


def _goodput(row: Row) -> float:
    value = row["goodput_requests_per_s"]
    return float(value) if isinstance(value, int | float) else 0.0


def sweep_summary(sweep: Node) -> str:
    """The knee and between which loads it lies."""
    knee, below = (sweep[key].optional_number() for key in ("knee", "knee_below"))
    limits = ", ".join(
        f"{name.removesuffix('_ms').upper()} {number(limit)} ms"
        for name, limit in sweep["limits_ms"].numbers().items()
    )
    least = sweep["attainment"].number()
    if knee is None:
        return f"no load keeps {least:.0%} of the requests within {limits}"
    unit = "requests/s" if sweep["of"].text() == "rate" else "open requests"
    end = "no higher load was tried" if below is None else f"{number(round(below, 4))} does not"
    return f"{number(round(knee, 4))} {unit} keep {least:.0%} within {limits}; {end}"


def sweep_rows(sweep: Node) -> list[dict[str, Cell]]:
    """A row a load, shared with the command's table."""
    return [_row(sweep["of"].text(), point) for point in sweep["points"].elements()]


def _row(kind: str, point: Node) -> dict[str, Cell]:
    low, high = (point[f"share.{end}"].number() for end in ("low", "high"))
    cells: dict[str, Cell] = {
        kind: round(point["load"].number(), 4),
        "within limits": point["share.value"].optional_number(),
        "interval": f"{low:.3f} to {high:.3f}",
        "goodput_requests_per_s": point["goodput_requests_per_s"].optional_number(),
    }
    for metric in _METRICS:
        summary = point["result.definitions.weft"][f"{metric}_ms"]
        is_there = summary.value is not None
        cells[f"{metric}_p99_ms"] = round(summary["p99.value"].number(), 3) if is_there else None
    cells["failed"] = point["result.requests.failed"].integer()
    return cells


def sections(sweep: Node) -> list[Section]:
    """Goodput and latency against the load, then every point."""
    kind, rows = sweep["of"].text(), sweep_rows(sweep)

    def line(column: str) -> list[tuple[float, float]]:
        known = ((row[kind], row[column]) for row in rows)
        return [(float(x), float(y)) for x, y in known if x is not None and y is not None]  # type: ignore[arg-type]

    goodput = {"goodput": line("goodput_requests_per_s")}
    late = {metric.upper(): line(f"{metric}_p99_ms") for metric in _METRICS}
    charts = [
        Chart(
            title="Goodput against load",
            figure=figures.line_chart(goodput, kind, "requests/s within the limits"),
        ),
        Chart(
            title="Latency against load, 99th percentile",
            figure=figures.line_chart(late, kind, "milliseconds"),
        ),
    ]
    note = "Shares with Wilson's 95 % intervals; every load had the same prompts and order of gaps."
    return [Section(title="Loads", blocks=[*charts, Table(caption="Loads", rows=rows, note=note)])]
