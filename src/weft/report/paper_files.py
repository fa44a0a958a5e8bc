"""A study's figures as files for a paper: SVG, and CSV of the numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from weft.report.engines_document import read_study
from weft.report.engines_figures import PaperFigure, paper_figures
from weft.report.node import Node
from weft.report.page import rendered


def paper_files(study: Node) -> Iterator[tuple[str, str]]:
    """(file name, content) of every figure."""
    for one in paper_figures(read_study(study)):
        yield f"{one.name}.csv", _table(one)
        yield f"{one.name}.svg", rendered("figure.svg", figure=one.figure, title=one.title)


def _table(one: PaperFigure) -> str:
    names = list(dict.fromkeys(name for row in one.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.rows)
    return text.getvalue()
