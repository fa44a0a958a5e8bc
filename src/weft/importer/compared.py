"""Two imports side by side: what changed from one to the other, a step and a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.importer.imported import ImportedTrace
from weft.importer.rows import MeasuredRow
from weft.vocabulary.comparison import Verdict, compare
from weft.vocabulary.schedule import Collective

_TIMES = ("duration_us", "wait_us", "transfer_us")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One kind of call before and after; calls a step are means over the steps of the phase."""

    verdict: Verdict
    row: Collective
    counts: tuple[int, int]
    per_step: tuple[float | None, float | None]
    medians_us: dict[str, tuple[float | None, float | None]]

    @property
    def is_alike(self) -> bool:
        """As many calls a step, whatever the number of steps."""
        return self.verdict == "equal" or (
            self.verdict == "different" and self.per_step[0] == self.per_step[1]
        )

    def to_dict(self) -> dict[str, Any]:
        def sides(pair: tuple[Any, Any]) -> dict[str, Any]:
            return dict(zip(("before", "after"), pair, strict=True))

        return {
            "verdict": self.verdict,
            "changed": not self.is_alike,
            "text": self.text(),
            "row": self.row.to_dict(),
            "counts": sides(self.counts),
            "per_step": sides(self.per_step),
            "median_us": {name: sides(pair) for name, pair in self.medians_us.items()},
        }

    def text(self) -> str:
        row = self.row
        size = "of unknown size" if row.input_shape is None else f"{list(row.input_shape)}"
        what = (
            f"{row.phase} {row.op} {size} over {row.group}{row.group_size or ''}, stage {row.stage}"
        )
        counts = f"{self.counts[0]} -> {self.counts[1]} calls"
        times = [
            f"{name.removesuffix('_us')} {before:,.1f} -> {after:,.1f} us"
            for name, (before, after) in self.medians_us.items()
            if before is not None and after is not None
        ]
        return "; ".join([f"{what}: {counts}", *times])


def changes(before: ImportedTrace, after: ImportedTrace) -> list[Change]:
    """Every kind of call of either import, those that changed in number first."""
    rows = [{m.row.key: m for m in side.rows} for side in (before, after)]
    steps = [_steps_by_phase(side) for side in (before, after)]
    found = []
    for compared in compare(before.schedule, after.schedule):
        pair = [side.get(compared.row.key) for side in rows]
        counts = [m.row.count if m else 0 for m in pair]
        found.append(
            Change(
                verdict=compared.verdict,
                row=compared.row,
                counts=(counts[0], counts[1]),
                per_step=(
                    _ratio(counts[0], steps[0].get(compared.row.phase)),
                    _ratio(counts[1], steps[1].get(compared.row.phase)),
                ),
                medians_us={
                    name: (_median(pair[0], name), _median(pair[1], name)) for name in _TIMES
                },
            )
        )
    return sorted(found, key=lambda change: change.is_alike)


def changes_json(before: ImportedTrace, after: ImportedTrace) -> dict[str, Any]:
    found = changes(before, after)
    return {
        "engine": {"before": before.schedule.engine, "after": after.schedule.engine},
        "version": {"before": _version(before), "after": _version(after)},
        "changed": sum(not change.is_alike for change in found),
        "rows": [change.to_dict() for change in found],
    }


def _version(side: ImportedTrace) -> str | None:
    return next(iter(side.traces.values())).engine_version


def _steps_by_phase(side: ImportedTrace) -> dict[str, int]:
    labels = [step.label.phase for step in next(iter(side.traces.values())).busy_steps]
    return {phase: labels.count(phase) for phase in set(labels)}


def _ratio(count: int, steps: int | None) -> float | None:
    return round(count / steps, 3) if steps else None


def _median(measured: MeasuredRow | None, name: str) -> float | None:
    statistics = None if measured is None else getattr(measured.row, name)
    return None if statistics is None else statistics.median
