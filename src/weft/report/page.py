"""A Report as one HTML file that needs nothing else: no network, no script, no second file.

A content security policy in the page forbids every request, so a report cannot reach out even
by mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from weft import __version__
from weft.report.blocks import Badge, Block, Cell, Report, Table
from weft.report.drawing import SIZE
from weft.report.text import head, number, printable
from weft.vocabulary.files import write_file

_LONG_WORD: Final = 24


def write_report(report: Report, path: Path) -> Path:
    """Write the page to ``path`` whole or not at all, and return the path.

    Raises UserError where the path cannot be written, EnvironmentUnavailable where the disk
    is full.
    """
    return write_file(path, render(report))


def render(report: Report) -> str:
    """The whole document as text."""
    written = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return rendered("page.html", report=report, written=written)


def rendered(template: str, **values: object) -> str:
    """A template of weft's, every value escaped."""
    return printable(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("weft.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {"version": __version__, "size": SIZE}
    environment.filters |= {"head": head, "shown": shown, "columns": _columns}
    environment.tests |= {"badge": lambda value: isinstance(value, Badge), "kind": _is_kind}
    return environment


def shown(value: Cell) -> str:
    """One value: numbers with separators, truth as yes or no, nothing as a dash."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    return "–" if value in (None, "") else str(value)


def _is_kind(block: Block, name: str) -> bool:
    return type(block).__name__ == name


def _columns(table: Table) -> dict[str, str]:
    """The style of each column: numbers to the right, long words may break."""
    return {name: _style([row.get(name) for row in table.rows]) for name in table.rows[0]}


def _style(values: Sequence[Cell]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {int, float}:
        return "number"
    words = (word for value in values if isinstance(value, str) for word in value.split())
    return "text long" if any(len(word) > _LONG_WORD for word in words) else "text"
