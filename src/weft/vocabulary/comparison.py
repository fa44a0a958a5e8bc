"""Hold one schedule against another, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from weft.vocabulary.schedule import Collective, Schedule

Verdict = Literal["equal", "missing", "surplus", "different"]


@dataclass(frozen=True, kw_only=True)
class RowComparison:
    """One row of the expected schedule beside the same row of the actual one.

    missing: expected and not there; surplus: there and not expected; different:
    there with another count.
    """

    verdict: Verdict
    expected: Collective | None
    actual: Collective | None

    @property
    def row(self) -> Collective:
        row = self.expected or self.actual
        assert row is not None
        return row

    def to_dict(self) -> dict[str, Any]:
        """``{"verdict", "row", "counts"}``, a count null on the side that lacks the row."""
        sides = {"expected": self.expected, "actual": self.actual}
        return {
            "verdict": self.verdict,
            "row": self.row.to_dict(),
            "counts": {name: side and side.count for name, side in sides.items()},
        }


def compare(expected: Schedule, actual: Schedule) -> list[RowComparison]:
    """Compare by kind of call (stage, phase, op, group, shapes, dtype) and count."""
    wanted = {row.key: row for row in expected.collectives}
    found = {row.key: row for row in actual.collectives}
    rows = [
        RowComparison(verdict=_verdict(row, found.get(key)), expected=row, actual=found.get(key))
        for key, row in wanted.items()
    ]
    rows += [
        RowComparison(verdict="surplus", expected=None, actual=row)
        for key, row in found.items()
        if key not in wanted
    ]
    return rows


def _verdict(expected: Collective, actual: Collective | None) -> Verdict:
    if actual is None:
        return "missing"
    return "equal" if actual.count == expected.count else "different"
