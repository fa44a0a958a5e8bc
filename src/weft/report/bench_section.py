"""``weft bench allreduce`` (``weft.bench.allreduce/1``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from weft.report import figures
from weft.report.blocks import (
    Answer,
    Block,
    Cell,
    Chart,
    Facts,
    Headline,
    Section,
    Table,
    verdict_badge,
)
from weft.report.drawing import Point
from weft.report.node import Node
from weft.report.text import binary_bytes, number


def title(_: Node) -> str:
    return "All-reduce benchmark"


def answer(bench: Node) -> Answer:
    """Whether every result was right, and who is fastest with small and with large messages."""
    rows = bench["rows"].elements()
    wrong = sum(row["wrong"].optional_integer() or 0 for row in rows)
    algorithms = len({row["algorithm"].text() for row in rows})
    verdict = "every result right" if wrong == 0 else f"{wrong:,} wrong elements"
    failing = sorted({row["algorithm"].text() for row in rows if row["wrong"].value})
    return Answer(
        summary=f"{algorithms} algorithms, {len(rows)} measurements, {verdict}",
        verdict=verdict_badge("wrong" if wrong else "passed"),
        headlines=list(_fastest(rows)),
        warnings=[f"wrong results: {', '.join(failing)}"] if failing else (),
    )


def _fastest(rows: list[Node]) -> Iterator[Headline]:
    sizes = sorted({row["bytes"].integer() for row in rows})
    for size in dict.fromkeys([*sizes[:1], *sizes[-1:]]):
        times = [
            (row["median_us"].number(), row["algorithm"].text())
            for row in rows
            if row["bytes"].integer() == size
        ]
        best, name = min(times)
        slowest = max(times)[0]
        note = (
            f"{number(round(best, 2))} µs; the slowest takes {slowest / best:,.1f} times"
            if best
            else ""
        )
        yield Headline(label=f"fastest at {binary_bytes(size)}", value=name, note=note)
    bandwidths = [
        (rate, row["algorithm"].text())
        for row in rows
        if (rate := row["busbw_gb_s"].optional_number()) is not None
    ]
    if bandwidths:
        rate, name = max(bandwidths)
        yield Headline(
            label="highest bus bandwidth", value=f"{number(round(rate, 2))} GB/s", note=name
        )


def sections(bench: Node) -> list[Section]:
    """Latency lines of each dtype, then every row."""
    rows = bench["rows"].elements()
    note = "algbw = bytes / median time; busbw = algbw times the correction factor 2(n-1)/n."
    machine = bench["machine"].cells()
    blocks: list[Block] = [_latency_chart(dtype, rows) for dtype in _dtypes(rows)]
    blocks += [Facts(items=machine)] if machine else []
    cells = [_cells(row) for row in rows]
    blocks.append(Table(caption="Every measurement", rows=cells, note=note, folded=len(cells) > 20))
    return [Section(title="Latency", blocks=blocks)]


def _dtypes(rows: list[Node]) -> list[str]:
    return list(dict.fromkeys(row["dtype"].text() for row in rows))


def _latency_chart(dtype: str, rows: list[Node]) -> Chart:
    lines: dict[str, list[Point]] = defaultdict(list)
    for row in rows:
        if row["dtype"].text() == dtype:
            low, median, high = (row[f"{key}_us"].number() for key in ("min", "median", "max"))
            name, size = row["algorithm"].text(), row["bytes"].integer()
            text = f"{name} · {binary_bytes(size)}: {median:,.5g} µs ({low:,.5g} to {high:,.5g})"
            lines[name].append(Point(size, median, text, low, high))
    return Chart(
        title=f"Latency by message size, {dtype}",
        figure=figures.latency_by_size(lines),
        note="Lines join the medians; the bands reach from the fastest to the slowest call.",
    )


def _cells(row: Node) -> dict[str, Cell]:
    wrong = row["wrong"].optional_integer()
    return {
        **row.cells("algorithm", "dtype", "bytes", "min_us", "median_us", "max_us"),
        **row.cells("algbw_gb_s", "busbw_gb_s"),
        "verdict": None if wrong is None else verdict_badge("wrong" if wrong else "ok"),
    }
