"""Tables and lists of facts as accessible HTML that scrolls sideways on a narrow screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from weft.report.blocks import Badge, Cell, Facts, Table
from weft.report.text import escape, number

_LONG_TEXT: Final = 48
_UNITS: Final = {
    "_us": "µs",
    "_ms": "ms",
    "_bytes": "bytes",
    "_gb_s": "GB/s",
    "_gib": "GiB",
    "_gb": "GB",
}


def table_html(table: Table) -> str:
    """The table with its caption; an empty one says so."""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    if not table.rows:
        return f'<p class="caption">{escape(table.caption)}</p><p class="note">No rows.</p>{note}'
    grid = _grid(table.caption, table.rows)
    if table.folded:
        title = f"{escape(table.caption)} <small>{_row_count(len(table.rows))}</small>"
        return f"<details><summary>{title}</summary>{grid}{note}</details>"
    return f'<p class="caption">{escape(table.caption)}</p>{grid}{note}'


def facts_html(facts: Facts) -> str:
    """A list of names with their values."""
    items = (
        f"<div><dt>{escape(_head(name))}</dt><dd>{cell_html(value)}</dd></div>"
        for name, value in facts.items.items()
    )
    return f'<dl class="facts">{"".join(items)}</dl>'


def cell_html(value: Cell) -> str:
    """One value: numbers with separators, truth as yes or no, nothing as a dash."""
    if isinstance(value, Badge):
        return badge_html(value)
    if value is None:
        return '<span class="none">–</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(number(value) if isinstance(value, int | float) else value)


def badge_html(badge: Badge) -> str:
    return f'<span class="badge {badge.tone}">{escape(badge.text)}</span>'


def _grid(caption: str, rows: Sequence[Mapping[str, Cell]]) -> str:
    names = list(rows[0])
    classes = {name: _column_class(name, rows) for name in names}
    head = "".join(f'<th scope="col"{classes[name]}>{escape(_head(name))}</th>' for name in names)
    body = "".join(
        "<tr>"
        + "".join(f"<td{classes[name]}>{cell_html(row.get(name))}</td>" for name in names)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _column_class(name: str, rows: Sequence[Mapping[str, Cell]]) -> str:
    if _is_numeric(name, rows):
        return ' class="number"'
    is_long = any(len(str(row.get(name))) > _LONG_TEXT for row in rows)
    return ' class="long"' if is_long else ""


def _is_numeric(name: str, rows: Sequence[Mapping[str, Cell]]) -> bool:
    values = [row.get(name) for row in rows]
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in present
    )


def _head(name: str) -> str:
    """A column name with its unit set apart: ``median_us`` is "median (µs)"."""
    for ending, unit in _UNITS.items():
        if name.endswith(ending) and name != ending[1:]:
            return f"{name.removesuffix(ending)} ({unit})".replace("_", " ")
    return name.replace("_", " ")


def _row_count(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"
