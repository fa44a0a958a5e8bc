"""Why one layout and not another: the two side by side, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from weft.planning.objective import Candidate
from weft.planning.planner import Plan
from weft.planning.space import Rejection
from weft.prediction.prediction import PARTS, PhaseTime


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One part of one phase in ms, here and in the best layout."""

    phase: str
    part: str
    here_ms: float
    best_ms: float

    @property
    def difference_ms(self) -> float:
        return self.here_ms - self.best_ms


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One sentence, and the parts that it rests on (none for a rejected layout)."""

    summary: str
    differences: tuple[Difference, ...] = ()


def explain(plan: Plan, name: str) -> Explanation:
    """Why the layout ``name`` is where it is. Raises LayoutError for an unknown one."""
    found = plan.find(name)
    if isinstance(found, Rejection):
        return Explanation(summary=f"{found.name} cannot be used: {found.reason}.")
    best = plan.best
    if found is best:
        return Explanation(summary=_best_summary(plan), differences=tuple(_compare(best, best)))
    differences = tuple(_compare(found, best))
    return Explanation(summary=_summary(plan, found, differences), differences=differences)


def _best_summary(plan: Plan) -> str:
    ties = [item.layout.name for item in plan.ranked[1:] if plan.is_tied(item)]
    summary = f"{plan.best.layout.name} is the best layout"
    return summary + (f"; within noise of it: {', '.join(ties)}." if ties else ".")


def _compare(candidate: Candidate, best: Candidate) -> Iterator[Difference]:
    for phase in ("prefill", "decode"):
        here: PhaseTime = getattr(candidate.prediction, phase)
        there: PhaseTime = getattr(best.prediction, phase)
        for part in (*PARTS, "total"):
            yield Difference(
                phase=phase,
                part=part,
                here_ms=getattr(here, f"{part}_ms"),
                best_ms=getattr(there, f"{part}_ms"),
            )


def _summary(plan: Plan, candidate: Candidate, differences: tuple[Difference, ...]) -> str:
    rank = plan.ranked.index(candidate) + 1
    ratio = candidate.score / plan.best.score
    verdict = (
        f"{candidate.layout.name} is number {rank} of {len(plan.ranked)}, "
        f"{(ratio - 1) * 100:.1f} % behind {plan.best.layout.name}"
    )
    if plan.is_tied(candidate):
        verdict += f" (a tie: the noise is {plan.noise * 100:.1f} %)"
    steps = plan.question.workload.num_decode_steps
    costs = [
        (item.difference_ms * (steps if item.phase == "decode" else 1), item)
        for item in differences
        if item.part != "total"
    ]
    cost, worst = max(costs, key=lambda pair: pair[0])
    if cost <= 0:
        return verdict + "."
    return (
        f"{verdict}; the largest cost is {worst.phase} {worst.part}: {_detail(candidate, worst)}."
    )


def _detail(candidate: Candidate, difference: Difference) -> str:
    text = f"{difference.here_ms:.3g} ms against {difference.best_ms:.3g} ms"
    if difference.part == "waiting":
        return f"{text} (bubbles, hops, and launches that the device does not hide)"
    if difference.part != "communication":
        return text
    phase: PhaseTime = getattr(candidate.prediction, difference.phase)
    calls = sorted(phase.collectives, key=lambda item: -item.time_us)[:2]
    parts = [
        f"{call.count} x {call.op} of {call.message_bytes} B over {call.group} by {call.algorithm} "
        f"at {call.time_us / call.count:.1f} µs"
        for call in calls
    ]
    return f"{text} ({'; '.join(parts)})"
