"""Sections from ``weft bench allreduce`` (``weft.bench.allreduce/1``)."""

from __future__ import annotations

from weft.report import figures
from weft.report.blocks import Block, Cell, Chart, Facts, Section, Table, verdict_badge
from weft.report.node import Node


def bench_summary(bench: Node) -> str:
    rows = bench.child("rows").elements()
    wrong = sum(row.child("wrong").optional_integer() or 0 for row in rows)
    algorithms = len({row.child("algorithm").text() for row in rows})
    verdict = "every result right" if wrong == 0 else f"{wrong:,} wrong elements"
    return f"{algorithms} algorithms, {len(rows)} measurements, {verdict}"


def sections_of_bench(bench: Node) -> list[Section]:
    """Latency lines of each dtype, then every row."""
    rows = bench.child("rows").elements()
    machine = {key: node.cell() for key, node in bench.child("machine").items()}
    blocks: list[Block] = [Facts(items=machine)] if machine else []
    blocks += [_latency_chart(dtype, rows) for dtype in _dtypes(rows)]
    cells = [_cells(row) for row in rows]
    blocks.append(
        Table(
            caption="Every measurement",
            rows=cells,
            note="algbw = bytes / median time; busbw = algbw times the correction factor 2(n-1)/n.",
        )
    )
    return [Section(title="All-reduce latency", blocks=blocks)]


def _dtypes(rows: list[Node]) -> list[str]:
    return list(dict.fromkeys(row.child("dtype").text() for row in rows))


def _latency_chart(dtype: str, rows: list[Node]) -> Chart:
    points = [
        figures.LatencyPoint(
            algorithm=row.child("algorithm").text(),
            size_bytes=row.child("bytes").integer(),
            min_us=row.child("min_us").number(),
            median_us=row.child("median_us").number(),
            max_us=row.child("max_us").number(),
        )
        for row in rows
        if row.child("dtype").text() == dtype
    ]
    return Chart(
        title=f"Latency by message size, {dtype}",
        figure=figures.latency_by_size(points),
        note="Lines join the medians; the bands reach from the fastest to the slowest call.",
    )


def _cells(row: Node) -> dict[str, Cell]:
    wrong = row.child("wrong").optional_integer()
    return {
        "algorithm": row.child("algorithm").text(),
        "dtype": row.child("dtype").text(),
        "bytes": row.child("bytes").integer(),
        "min_us": row.child("min_us").number(),
        "median_us": row.child("median_us").number(),
        "max_us": row.child("max_us").number(),
        "algbw_gb_s": row.child("algbw_gb_s").optional_number(),
        "busbw_gb_s": row.child("busbw_gb_s").optional_number(),
        "verdict": None if wrong is None else verdict_badge("wrong" if wrong else "ok"),
    }
