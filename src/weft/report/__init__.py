"""Reports: results as one HTML file that works offline, on a desktop and on a phone.

A page begins with its answer; then come sections of blocks::

    from weft.report import Answer, Chart, Headline, Report, Section, Table, figures, write_report

    report = Report(
        title="All-reduce benchmark",
        answer=Answer(
            summary="4 GPUs, 3 algorithms, every result right",
            headlines=[Headline(label="fastest at 8 KiB", value="one-shot", note="6.2 µs")],
        ),
        sections=[Section(title="Latency", blocks=[
            Table(caption="Rows", rows=[{"algorithm": "ring", "median_us": 14.8}]),
            Chart(title="By size", figure=figures.latency_by_size(lines), note="How to read it"),
        ])],
    )
    write_report(report, Path("report.html"))

or from the documents that commands write, as ``weft report FILE.json…`` does::

    write_report(report_of([document(study_json, "study")]), Path("report.html"))

Every text is plain text. A kind of document (docs/formats.md has their fields) is one module
``*_section`` with ``title``, ``answer`` and ``sections``, and a row of ``documents``. A figure that
``figures`` lacks is made of ``drawing``'s parts, in the colours of ``colours``.

Nothing here imports torch or starts a process group.
"""

from __future__ import annotations

from typing import Any

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
    Prose,
    Report,
    Section,
    Table,
    verdict_badge,
)
from weft.report.documents import report_of
from weft.report.node import Node, read_document
from weft.report.page import render, write_report
from weft.report.rows import compared_rows

__all__ = [
    "Answer",
    "Badge",
    "Block",
    "Cell",
    "Chart",
    "Facts",
    "Folded",
    "Headline",
    "Prose",
    "Report",
    "Section",
    "Table",
    "compared_rows",
    "document",
    "figures",
    "read_document",
    "render",
    "report_of",
    "verdict_badge",
    "write_report",
]


def document(value: dict[str, Any], name: str) -> Node:
    """A document in memory; ``name`` stands in the errors about its fields."""
    return Node(value, name)
