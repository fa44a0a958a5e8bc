"""Reports: results as one HTML file that works offline, on a desktop and on a phone.

Build a page from blocks::

    from weft.report import Chart, Prose, Report, Section, Table, figures, write_report

    report = Report(
        title="All-reduce benchmark",
        summary="4 GPUs, 3 algorithms, every result right",
        sections=[
            Section(title="Latency", blocks=[
                Prose(text="Plain text; every character is escaped."),
                Table(caption="Rows", rows=[{"algorithm": "ring", "median_us": 14.8}]),
                Chart(title="By size", figure=figures.latency_by_size(points), note="How to read it"),
            ]),
        ],
        verdict=Badge(text="passed", tone="good"),
    )
    write_report(report, Path("report.html"))

or from the documents that commands write, as ``weft report FILE.json…`` does::

    write_report(report_of([document(study_json, "study")]), Path("report.html"))

A figure that ``figures`` lacks starts from ``figures.new_figure`` and takes its colours
from ``weft.report.colours`` (``kind_colour`` for operations and kinds of time,
``series_colour`` for other lines); the page adds the theme, the fonts and the margins.

Documents and their schemas (docs/formats.md has every field): ``weft.schedule/1``
(with the optional lists ``conformance``, ``time_share``, ``waiting``, ``timeline``
and ``unexplained``), ``weft.study/1``, ``weft.bench.allreduce/1``,
``weft.prediction/1``, ``weft.plan/1``, ``weft.scoreboard/1``,
``weft.bench.serve/1`` and ``weft.study.engines/1``. ``compared_rows`` writes those of a study.

Nothing here imports torch or starts a process group.
"""

from __future__ import annotations

from typing import Any

from weft.report import figures
from weft.report.blocks import (
    Badge,
    Block,
    Cell,
    Chart,
    Facts,
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
from weft.report.schedule_section import schedule_sections

__all__ = [
    "Badge",
    "Block",
    "Cell",
    "Chart",
    "Facts",
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
    "schedule_sections",
    "verdict_badge",
    "write_report",
]


def document(value: dict[str, Any], name: str) -> Node:
    """A document in memory; ``name`` stands in the errors about its fields."""
    return Node(value, name)
