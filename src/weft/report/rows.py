"""Collectives in documents: reading rows, adding up volumes, and comparing schedules.

A compared row is ``{"verdict", "row", "counts"}``: the kind of call as a row of the
schedule format, and how often each source has it (null where it does not).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from weft.errors import LayoutError
from weft.report.blocks import Cell, verdict_badge
from weft.report.node import Node
from weft.vocabulary.layout import Layout
from weft.vocabulary.schedule import Schedule


def compared_rows(schedules: Mapping[str, Schedule]) -> list[dict[str, Any]]:
    """Rows of several schedules side by side, for a document: ``{"run": …, "dry_run": …}``.

    The verdict is ``equal`` where every source has the row equally often, else
    ``different``.
    """
    found = {
        source: {row.key: row for row in schedule.collectives}
        for source, schedule in schedules.items()
    }
    kinds = {key: row for rows in found.values() for key, row in rows.items()}
    result = []
    for key, row in kinds.items():
        counts = {name: rows[key].count if key in rows else None for name, rows in found.items()}
        verdict = "equal" if len(set(counts.values())) == 1 else "different"
        result.append({"verdict": verdict, "row": row.to_dict(), "counts": counts})
    return result


def num_equal(rows: Sequence[Node]) -> int:
    """Of compared rows."""
    return sum(row["verdict"].text() == "equal" for row in rows)


def comparison_cells(rows: Node) -> list[dict[str, Cell]]:
    """Table rows of a list of compared rows."""
    elements = rows.elements()
    kinds = _known_columns([_kind_cells(node["row"]) for node in elements])
    sources = list(dict.fromkeys(key for node in elements for key, _ in node["counts"].items()))
    return [
        kind
        | {source: node["counts"].child(source).optional_integer() for source in sources}
        | {"verdict": verdict_badge(node["verdict"].text())}
        for kind, node in zip(kinds, elements, strict=True)
    ]


def _known_columns(rows: list[dict[str, Cell]]) -> list[dict[str, Cell]]:
    """The rows without the columns that are empty in all of them."""
    known = {name for row in rows for name, value in row.items() if value is not None}
    return [{name: value for name, value in row.items() if name in known} for row in rows]


def object_cells(objects: Node) -> list[dict[str, Cell]]:
    """Table rows of a list of objects as they stand, with every key that occurs."""
    elements = objects.elements()
    names = list(dict.fromkeys(key for node in elements for key, _ in node.items()))
    return [node.cells(*names) for node in elements]


def schedule_cells(schedule: Node) -> list[dict[str, Cell]]:
    """Table rows of a schedule document; times are shown where a row has them."""
    rows = schedule["collectives"].elements()
    timed = any("duration_us" in row for row in rows)
    cells = [
        _kind_cells(row)
        | {
            "count": row["count"].integer(),
            "volume_bytes": row["volume_bytes"].optional_number(),
        }
        | (_time_cells(row) if timed else {})
        for row in rows
    ]
    return _known_columns(cells)


def _kind_cells(row: Node) -> dict[str, Cell]:
    return {
        "stage": row["stage"].optional_integer(),
        "phase": row["phase"].text(),
        "op": row["op"].text(),
        "group": f"{row.child('group').cell()}{row.child('group_size').cell()}",
        "input": _shape(row["input_shape"]),
        "dtype": _text_or_none(row["dtype"]),
        "message_bytes": row["message_bytes"].optional_number(),
    }


def _time_cells(row: Node) -> dict[str, Cell]:
    duration = row["duration_us"]
    low, high = (_statistic(duration, part) for part in ("min", "max"))
    return {
        "median_us": _statistic(duration, "median"),
        "range (µs)": None if low is None or high is None else f"{low:,.5g} to {high:,.5g}",
        "total_us": _statistic(duration, "total"),
        "wait_us": _statistic(row["wait_us"], "total"),
        "transfer_us": _statistic(row["transfer_us"], "total"),
        "bound": row["bound"].cell(),
        "busbw_gb_s": row["busbw_gb_s"].optional_number(),
    }


def _statistic(node: Node, part: str) -> float | None:
    return None if node.value is None else node.child(part).optional_number()


def _shape(node: Node) -> str | None:
    if node.value is None:
        return None
    return f"[{', '.join(str(size.integer()) for size in node.elements())}]"


def _text_or_none(node: Node) -> str | None:
    return None if node.value is None else node.text()


def layout_name(layout: Node) -> str:
    """The short name of a layout that is written as an object or by its name."""
    if isinstance(layout.value, str):
        return layout.value
    degrees = {
        key: node.integer()
        for key, node in layout.items()
        if key in ("tp", "pp", "sp", "ep", "dp") and node.value is not None
    }
    try:
        return Layout(**degrees).name  # type: ignore[arg-type]
    except LayoutError as error:
        raise layout.wrong(f"a layout ({error})") from None


def operation_volumes(schedule: Node) -> dict[str, float]:
    """Bytes by operation, by the published convention (``totals.by_op``)."""
    return schedule["totals.by_op"].numbers()


def message_counts(schedule: Node) -> dict[str, dict[int, int]]:
    """Calls by operation and message bytes, over all stages."""
    counts: dict[str, Counter[int]] = {}
    for row in schedule["collectives"].elements():
        size = row["message_bytes"].optional_integer()
        if size is not None:
            sizes = counts.setdefault(row["op"].text(), Counter())
            sizes[size] += row["count"].integer()
    return {op: dict(sizes) for op, sizes in counts.items()}


def decode_growth(schedule: Node) -> list[tuple[int, float]]:
    """Volume of the same request at other decode lengths: (decode tokens, bytes).

    A prefill costs its volume once and each decode step the same volume again. Empty
    where the document does not say how many tokens were decoded.
    """
    workload = schedule["workload"]
    if "decode_tokens" not in workload:
        return []
    steps = workload["decode_tokens"].integer() - 1
    phases = schedule["totals.by_phase"].numbers()
    per_step = phases.get("decode", 0.0) / steps if steps > 0 else 0.0
    start = sum(phases.values()) - phases.get("decode", 0.0)
    return [(tokens, start + per_step * (tokens - 1)) for tokens in (1, 64, 128, 256, 512, 1024)]
