"""Predictions beside measurements (``weft.scoreboard/1``)."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from weft.report import figures
from weft.report.blocks import Answer, Block, Cell, Chart, Headline, Section, Table
from weft.report.drawing import Point
from weft.report.node import Node


def title(_: Node) -> str:
    return "Predicted and measured"


def answer(scoreboard: Node) -> Answer:
    rows = [_values(row) for row in scoreboard["rows"].elements()]
    inside = sum(low <= measured <= high for _, low, high, measured in rows)
    errors = [abs(value / measured - 1) for value, _, _, measured in rows if measured]
    found = [Headline(label="inside their interval", value=f"{inside} of {len(rows)}")]
    if errors:
        found.append(Headline(label="median error", value=f"{median(errors):.1%}"))
        found.append(Headline(label="largest error", value=f"{max(errors):.1%}"))
    summary = f"{inside} of {len(rows)} measured points inside their predicted interval"
    return Answer(summary=summary, headlines=found)


def _values(row: Node) -> tuple[float, float, float, float]:
    predicted, low, high, measured = (
        row[key].number() for key in ("predicted", "low", "high", "measured")
    )
    return predicted, low, high, measured


def sections(scoreboard: Node) -> list[Section]:
    """One chart a quantity and source of measurements, then every point."""
    rows = scoreboard["rows"].elements()
    groups: dict[tuple[str, str], list[tuple[str, Point, float | None]]] = defaultdict(list)
    for row in rows:
        source = str(row["source"].cell() or "predicted and measured")
        predicted, low, high, measured = _values(row)
        point = Point(predicted, 0.0, low=low, high=high)
        groups[row["quantity"].text(), source].append((row["name"].text(), point, measured))
    blocks: list[Block] = [
        Chart(
            title=f"{quantity}: {source}",
            figure=figures.predicted_and_measured(points, x_title=quantity),
        )
        for (quantity, source), points in groups.items()
    ]
    blocks.append(Table(caption="Every point", rows=[_cells(row) for row in rows]))
    return [Section(title="Scoreboard", blocks=blocks)]


def _cells(row: Node) -> dict[str, Cell]:
    predicted, low, high, measured = _values(row)
    error = 100 * (predicted / measured - 1) if measured else None
    return {
        **(row.cells("source") if "source" in row else {}),
        "case": row["name"].text(),
        **row.cells("quantity"),
        "predicted": round(predicted, 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "measured": measured,
        "error (%)": None if error is None else round(error, 1),
    }
