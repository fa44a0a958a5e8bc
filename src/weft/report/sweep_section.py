"""Sections from ``weft bench serve --sweep`` (``weft.bench.sweep/1``)."""

from __future__ import annotations

from weft.report import figures
from weft.report.blocks import Badge, Cell, Chart, Section, Table
from weft.report.node import Node
from weft.report.text import number

_METRICS = ("ttft", "tpot", "e2e")


def sweep_summary(sweep: Node) -> str:
    """The knee and between which loads it lies."""
    knee, below = (sweep.child(key).optional_number() for key in ("knee", "knee_below"))
    limits = ", ".join(
        f"{name.removesuffix('_ms').upper()} {number(limit)} ms"
        for name, limit in sweep.child("limits_ms").numbers().items()
    )
    least = sweep.child("attainment").number()
    if knee is None:
        return f"no load keeps {least:.0%} of the requests within {limits}"
    unit = "requests/s" if sweep.child("of").text() == "rate" else "open requests"
    end = "no higher load was tried" if below is None else f"{number(round(below, 4))} does not"
    return f"{number(round(knee, 4))} {unit} keep {least:.0%} within {limits}; {end}"


def sweep_rows(sweep: Node) -> list[dict[str, Cell]]:
    """A row a load, shared with the command's table."""
    return [_row(sweep.child("of").text(), point) for point in sweep.child("points").elements()]


def _row(kind: str, point: Node) -> dict[str, Cell]:
    share, result = point.child("share"), point.child("result")
    ends = [share.child(end).number() for end in ("low", "high")]
    cells: dict[str, Cell] = {
        kind: round(point.child("load").number(), 4),
        "within limits": share.child("value").optional_number(),
        "interval": " to ".join(f"{end:.3f}" for end in ends),
        "goodput_requests_per_s": point.child("goodput_requests_per_s").optional_number(),
    }
    for metric in _METRICS:
        summary = result.child("definitions").child("weft").child(f"{metric}_ms")
        is_there = summary.value is not None
        p99 = summary.child("p99").child("value").number() if is_there else None
        cells[f"{metric}_p99_ms"] = None if p99 is None else round(p99, 3)
    cells["failed"] = result.child("requests").child("failed").integer()
    return cells


def sections_of_sweep(sweep: Node) -> list[Section]:
    """Goodput and latency against the load, then every point."""
    kind = sweep.child("of").text()
    rows = sweep_rows(sweep)
    points = [
        (row[kind], row["goodput_requests_per_s"], row["within limits"])
        for row in rows
        if isinstance(row["goodput_requests_per_s"], int | float)
    ]
    goodput = {"goodput": [(x, y) for x, y, _ in points]}
    late = {
        metric.upper(): [
            (row[kind], row[f"{metric}_p99_ms"])
            for row in rows
            if row[f"{metric}_p99_ms"] is not None
        ]
        for metric in _METRICS
    }
    charts = [
        Chart(
            title="Goodput against load",
            figure=figures.line_chart(goodput, kind, "requests/s within the limits"),  # type: ignore[arg-type]
        ),
        Chart(
            title="Latency against load, 99th percentile",
            figure=figures.line_chart(late, kind, "milliseconds"),  # type: ignore[arg-type]
        ),
    ]
    note = "Shares with Wilson's 95 % intervals; every load had the same prompts and order of gaps."
    return [Section(title="Sweep", blocks=[*charts, Table(caption="Loads", rows=rows, note=note)])]


def sweep_verdict(sweep: Node) -> Badge:
    held = sweep.child("knee").value is not None
    return Badge(text="knee found" if held else "no load holds", tone="good" if held else "bad")
