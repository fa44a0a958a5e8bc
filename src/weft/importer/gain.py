"""What would be gained: of the time of a step, the waiting, the transfer, and the best known time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from weft.importer.rank_trace import RankTrace, TracedCall
from weft.importer.rows import MeasuredRow
from weft.vocabulary.schedule import Collective

BestTime = Callable[[Collective], tuple[str, float] | None]
"""The fastest known algorithm for a row's message and its time in µs; None where none is known."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Means over the steps of a phase and their ranks, in microseconds a step.

    ``waiting_us`` is the part of ``communication_us`` in which a rank waited for others,
    most for ``waits_for``; ``faster_us`` is what the transfers would lose with ``algorithms``.
    None where it is not known (a rank that is missing, an open clock, no fabric given).
    """

    phase: str
    steps: int
    step_us: float
    communication_us: float
    waiting_us: float | None
    waits_for: int | None
    faster_us: float | None
    algorithms: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"text": self.text()}

    def text(self) -> str:
        """One sentence, in milliseconds."""
        parts = [f"of {self.step_us / 1e3:.3g} ms a step of {self.phase}"]
        parts.append(f"{self.communication_us / 1e3:.3g} are communication")
        if self.waiting_us is not None:
            whom = "" if self.waits_for is None else f" (most for rank {self.waits_for})"
            parts.append(f"{self.waiting_us / 1e3:.3g} of it waiting{whom}")
        if self.faster_us is not None:
            with_ = f" with {', '.join(self.algorithms)}" if self.algorithms else ""
            parts.append(f"{self.faster_us / 1e3:.3g} would go{with_}")
        return ", ".join(parts)


def gains(
    traces: Mapping[int, RankTrace],
    rows: tuple[MeasuredRow, ...],
    best: BestTime | None = None,
) -> list[Gain]:
    """A Gain of each phase that has steps."""
    found = (_gain(phase, traces, rows, best) for phase in ("prefill", "mixed", "decode"))
    return [gain for gain in found if gain is not None]


def _gain(
    phase: str,
    traces: Mapping[int, RankTrace],
    rows: tuple[MeasuredRow, ...],
    best: BestTime | None,
) -> Gain | None:
    steps = [
        step.end_us - step.start_us
        for trace in traces.values()
        for step in trace.busy_steps
        if step.label.phase == phase
    ]
    if not steps:
        return None
    calls = [
        call
        for trace in traces.values()
        for call in trace.calls
        if call.step is not None and trace.busy_steps[call.step].label.phase == phase
    ]
    is_split = bool(calls) and all(call.wait_us is not None for call in calls)
    waiting = sum(call.wait_us or 0.0 for call in calls)
    faster, algorithms = _faster([m for m in rows if m.row.phase == phase], best)
    per_rank_steps = len(steps) / len(traces)
    return Gain(
        phase=phase,
        steps=round(per_rank_steps),
        step_us=round(mean(steps), 3),
        communication_us=round(sum(call.duration_us for call in calls) / len(steps), 3),
        waiting_us=round(waiting / len(steps), 3) if is_split else None,
        waits_for=latest(calls) if is_split else None,
        faster_us=None if faster is None else round(faster / per_rank_steps, 3),
        algorithms=algorithms,
    )


def latest(calls: Iterable[TracedCall], place: Callable[[int], int] = int) -> int | None:
    """The rank that the others waited for longest, or its ``place`` (a replica)."""
    waits: Counter[int] = Counter()
    for call in calls:
        if call.waited_for is not None:
            waits[place(call.waited_for)] += round(1e3 * (call.wait_us or 0.0))
    return max(waits, key=lambda place: waits[place]) if waits.total() else None


def _faster(rows: list[MeasuredRow], best: BestTime | None) -> tuple[float | None, tuple[str, ...]]:
    """Microseconds of all calls of the rows whose best time is known, and the algorithms."""
    if best is None:
        return None, ()
    total, names, is_known = 0.0, dict[str, None](), False
    for measured in rows:
        found = best(measured.row)
        if found is None or measured.row.transfer_us is None:
            continue
        is_known = True
        saved = measured.row.transfer_us.median - found[1]
        if saved > 0:
            total += saved * measured.row.count
            names[found[0]] = None
    return (total, tuple(names)) if is_known else (None, ())
