"""The papers' figures from a study of engines, each with its numbers: for a page, SVG and CSV.

Xu et al., figures 8 to 10 (E2E, TTFT, TPOT by layout), volume by layout and decode length and
message sizes; Singhania et al.: a step's breakdown and strong scaling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weft.report import figures
from weft.report.drawing import Figure
from weft.report.engines_document import CaseRecord, Study
from weft.report.rows import decode_growth, message_counts, operation_volumes

METRICS: Final = {"e2e_ms": "E2E", "ttft_ms": "TTFT", "tpot_ms": "TPOT"}
Row = Mapping[str, str | float | None]


@dataclass(frozen=True, kw_only=True)
class PaperFigure:
    """``name`` is that of its files; ``rows`` are the numbers drawn."""

    name: str
    title: str
    figure: Figure
    rows: Sequence[Row]
    note: str | None = None


def paper_figures(study: Study) -> Iterator[PaperFigure]:
    """Every figure that the finished cases allow, workload by workload."""
    for workload in study.workloads:
        cases = [case for case in study.cases if case.workload == workload]
        done = [case for case in cases if case.status == "done"]
        yield from _latencies(workload, done)
        yield from _curves(workload, done)
        yield from _breakdowns(workload, done)
        yield from _scaling(workload, done)
        yield from _volumes(workload, cases)


def _latencies(workload: str, cases: Sequence[CaseRecord]) -> Iterator[PaperFigure]:
    for metric, name in METRICS.items():
        rows: list[Row] = [
            {"engine": case.engine, "layout": case.layout, metric: value}
            for case in cases
            if case.alone and (value := case.alone.median(metric)) is not None
        ]
        if rows:
            yield PaperFigure(
                name=f"{workload}-{metric.removesuffix('_ms')}",
                title=f"{name} by layout, {workload}",
                figure=figures.grouped_bars(
                    _series(rows, "engine", "layout", metric), f"{name} (ms)"
                ),
                rows=rows,
                note="Medians of the load with the fewest open requests.",
            )


def _curves(workload: str, cases: Sequence[CaseRecord]) -> Iterator[PaperFigure]:
    rows = [
        {
            "place": case.place,
            "requests_per_s": load.result.throughput.requests_per_s,
            "open_requests": load.concurrency,
            "tpot_p99_ms": load.figures.p99("tpot_ms"),
            "ttft_p99_ms": load.figures.p99("ttft_ms"),
        }
        for case in cases
        for load in case.loads
        if load.result.throughput.requests_per_s
    ]
    if not rows:
        return
    metric = "tpot_p99_ms" if any(row["tpot_p99_ms"] for row in rows) else "ttft_p99_ms"
    lines = _lines(rows, "place", "requests_per_s", metric)
    yield PaperFigure(
        name=f"{workload}-service-levels",
        title=f"Latency against throughput, {workload}",
        figure=figures.line_chart(lines, "requests/s", f"{metric[:4].upper()} p99 (ms)"),
        rows=rows,
    )


def _breakdowns(workload: str, cases: Sequence[CaseRecord]) -> Iterator[PaperFigure]:
    for phase in ("prefill", "decode"):
        bars = {
            case.place: part.parts
            for case in cases
            for part in (case.trace.phases if case.trace else ())
            if part.phase == phase
        }
        if bars:
            yield PaperFigure(
                name=f"{workload}-{phase}-step",
                title=f"One step of {phase}, {workload}",
                figure=figures.stacked_bars(bars, x_title="microseconds a step"),
                rows=[{"place": place, **parts} for place, parts in bars.items()],
                note="Of the profiled window. Waiting is part of communication where a pipeline's "
                "clocks are not known well enough.",
            )


def _scaling(workload: str, cases: Sequence[CaseRecord]) -> Iterator[PaperFigure]:
    """E2E of a request alone over that of the fewest ranks, best layout of each number."""
    rows: list[Row] = []
    for engine in dict.fromkeys(case.engine for case in cases):
        times = [
            (case.ranks, time, case.layout)
            for case in cases
            if case.engine == engine
            and case.alone
            and (time := case.alone.median("e2e_ms")) is not None
        ]
        best = {ranks: min(t for t in times if t[0] == ranks) for ranks, _, _ in sorted(times)}
        first = next(iter(best.values()), (0, 0.0, ""))[1]
        rows += [
            {"engine": engine, "ranks": ranks, "layout": layout, "speedup": first / time}
            for ranks, time, layout in best.values()
            if time
        ]
    if len({row["ranks"] for row in rows}) > 1:
        yield PaperFigure(
            name=f"{workload}-strong-scaling",
            title=f"Strong scaling, {workload}",
            figure=figures.line_chart(
                _lines(rows, "engine", "ranks", "speedup"), "ranks", "speed-up"
            ),
            rows=rows,
            note="E2E of a request alone, best layout of each number of ranks.",
        )


def _volumes(workload: str, cases: Sequence[CaseRecord]) -> Iterator[PaperFigure]:
    by_op = {case.place: volumes for case in cases if (volumes := operation_volumes(case.schedule))}
    if not by_op:
        return
    yield PaperFigure(
        name=f"{workload}-volume",
        title=f"Volume by layout and operation, {workload}",
        figure=figures.volume_by_layout(by_op),
        rows=[{"place": place, **volumes} for place, volumes in by_op.items()],
        note="By each engine's schedule, which the traces were held against.",
    )
    sending = {case.place: case.schedule for case in cases if case.place in by_op}
    growth = {place: decode_growth(schedule) for place, schedule in sending.items()}
    yield PaperFigure(
        name=f"{workload}-volume-by-length",
        title=f"Volume against decode length, {workload}",
        figure=figures.volume_by_decode_length(growth),
        rows=[
            {"place": place, "decode_tokens": tokens, "volume_bytes": size}
            for place, points in growth.items()
            for tokens, size in points
        ],
    )
    for place, schedule in sending.items():
        sizes = message_counts(schedule)
        yield PaperFigure(
            name=f"{workload}-messages-{place.replace(' ', '-')}",
            title=f"Message sizes, {place}, {workload}",
            figure=figures.message_sizes(sizes),
            rows=[
                {"op": op, "message_bytes": size, "calls": count}
                for op, of_op in sizes.items()
                for size, count in of_op.items()
            ],
        )


def _series(rows: Sequence[Row], name: str, x: str, y: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(str(row[name]), {})[str(row[x])] = float(row[y] or 0.0)
    return found


def _lines(rows: Sequence[Row], name: str, x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row[x] is not None and row[y] is not None:
            found.setdefault(str(row[name]), []).append((float(row[x] or 0), float(row[y] or 0)))
    return {line: sorted(points) for line, points in found.items()}
