"""A Schedule as table, JSON or CSV."""

from __future__ import annotations

from typing import Any

from weft.cli.output import OutputFormat, print_rows
from weft.vocabulary.schedule import Collective, Schedule


def print_schedule(schedule: Schedule, output_format: OutputFormat) -> None:
    """Print every row; the JSON form is the contract's object, the table ends with totals."""
    rows = [row_cells(row) for row in schedule.collectives]
    title = f"{schedule.model.name} · {schedule.layout.name} · engine {schedule.engine} · {schedule.source}"
    print_rows(rows, output_format, title=title, document=schedule.to_dict())
    if output_format is OutputFormat.TABLE:
        totals = schedule.totals
        parts = ", ".join(f"{op} {size / 1e6:,.3f}" for op, size in totals.by_op.items())
        print(f"total {totals.volume_bytes / 1e6:,.3f} MB" + (f" ({parts})" if parts else ""))


def row_cells(row: Collective) -> dict[str, Any]:
    """A row of a table."""
    return {
        "stage": row.stage,
        "phase": row.phase,
        "op": row.op,
        "group": f"{row.group}{row.group_size or ''}",
        "count": row.count,
        "input": _shape(row.input_shape),
        "output": _shape(row.output_shape),
        "dtype": row.dtype,
        "message_bytes": row.message_bytes,
        "volume_bytes": row.volume_bytes,
        "provenance": row.provenance,
    }


def _shape(shape: tuple[int, ...] | None) -> str | None:
    return None if shape is None else f"[{','.join(map(str, shape))}]"
