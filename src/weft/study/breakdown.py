"""Where the time of a step went: compute, communication, waiting, idle.

All ranks of a recording share a clock (one machine). In a collective everybody can go on
only after the last one has come: what a rank spends before that is waiting, the rest is
communication. A receive waits until its send begins. What lies between two steps is idle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from weft.vocabulary.layout import GroupKind, Layout
from weft.vocabulary.schedule import Operation, Phase


@dataclass(frozen=True, kw_only=True)
class TimedCall:
    """One call of one rank, in seconds of the common clock."""

    op: Operation
    group: GroupKind
    step: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class TimedStep:
    """One step of one rank."""

    phase: Phase
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class RankRecord:
    """What one rank did, in order."""

    rank: int
    steps: Sequence[TimedStep]
    calls: Sequence[TimedCall]


@dataclass(kw_only=True)
class PhaseBreakdown:
    """Milliseconds of one phase, mean over the ranks, summed over ``num_steps`` steps."""

    num_steps: int = 0
    compute_ms: float = 0.0
    communication_ms: float = 0.0
    wait_ms: float = 0.0
    idle_ms: float = 0.0
    steps_of_rank: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def total_ms(self) -> float:
        return self.compute_ms + self.communication_ms + self.wait_ms + self.idle_ms


def breakdown(records: Sequence[RankRecord], layout: Layout) -> dict[Phase, PhaseBreakdown]:
    """Time by phase; every rank of the layout has one record."""
    waits = waiting_s(records, layout)
    phases: dict[Phase, PhaseBreakdown] = defaultdict(PhaseBreakdown)
    for record in records:
        in_step: dict[int, list[int]] = defaultdict(list)
        for index, call in enumerate(record.calls):
            in_step[call.step].append(index)
        for number, step in enumerate(record.steps):
            calls = in_step[number]
            waited = sum(waits[record.rank][index] for index in calls)
            inside = sum(record.calls[i].end_s - record.calls[i].start_s for i in calls)
            following = record.steps[number + 1 :][:1]
            idle = max(0.0, following[0].start_s - step.end_s) if following else 0.0
            _add(phases[step.phase], record.rank, step, inside, waited, idle, len(records))
    for phase in phases.values():
        phase.num_steps = max(phase.steps_of_rank.values())
    return dict(phases)


def waiting_s(records: Sequence[RankRecord], layout: Layout) -> dict[int, list[float]]:
    """Seconds that each call of each rank waited for others."""
    waits = {record.rank: [0.0] * len(record.calls) for record in records}
    for calls in meetings(records, layout):
        latest = max(call.start_s for _, _, call in calls)
        for rank, index, call in calls:
            if call.op != "send":
                waits[rank][index] = min(max(0.0, latest - call.start_s), call.end_s - call.start_s)
    return waits


def meetings(
    records: Sequence[RankRecord], layout: Layout
) -> Iterable[list[tuple[int, int, TimedCall]]]:
    """Calls that belong together: of one collective, or a send and its receive."""
    found: dict[tuple[object, ...], list[tuple[int, int, TimedCall]]] = defaultdict(list)
    for record in records:
        seen: dict[tuple[object, ...], int] = defaultdict(int)
        for index, call in enumerate(record.calls):
            members: tuple[int, ...] = layout.group_of(call.group, record.rank)
            if call.op in ("send", "recv"):
                place = members.index(record.rank)
                ends = (place, place + 1) if call.op == "send" else (place - 1, place)
                key: tuple[object, ...] = ("pair", members, ends)
            else:
                key = (call.op, call.group, members)
            number = seen[key]
            seen[key] += 1
            found[*key, number].append((record.rank, index, call))
    return found.values()


def _add(
    phase: PhaseBreakdown,
    rank: int,
    step: TimedStep,
    inside_s: float,
    waited_s: float,
    idle_s: float,
    num_ranks: int,
) -> None:
    share = 1e3 / num_ranks
    phase.compute_ms += max(0.0, step.end_s - step.start_s - inside_s) * share
    phase.communication_ms += (inside_s - waited_s) * share
    phase.wait_ms += waited_s * share
    phase.idle_ms += idle_s * share
    phase.steps_of_rank[rank] = phase.steps_of_rank.get(rank, 0) + 1
