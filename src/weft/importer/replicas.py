"""Skew between data-parallel replicas: who does how much, and who waits for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft.importer.gain import latest
from weft.importer.layout_inference import RunLayout
from weft.importer.rank_trace import RankTrace, TracedCall


@dataclass(frozen=True, kw_only=True)
class ReplicaSkew:
    """One replica of several. Times in microseconds, of a rank in the mean.

    ``idle_steps`` are those it took without requests, for the others' experts. ``wait_us`` is
    spent in collectives between replicas, most of it for replica ``waits_for``; None where
    ranks that it met are not there.
    """

    replica: int
    steps: int
    idle_steps: int
    tokens: int
    busy_us: float
    wait_us: float | None
    waits_for: int | None

    def text(self) -> str:
        idle = f" and {self.idle_steps} without requests" if self.idle_steps else ""
        parts = [f"replica {self.replica}: {self.steps} steps{idle}, {self.tokens} tokens"]
        parts.append(f"{self.busy_us / 1e3:.3g} ms busy")
        if self.wait_us is not None:
            most = "" if self.waits_for is None else f", most for replica {self.waits_for}"
            parts.append(f"waited {self.wait_us / 1e3:.3g} ms for other replicas{most}")
        return ", ".join(parts)


def replicas(traces: Mapping[int, RankTrace], run: RunLayout) -> list[ReplicaSkew]:
    """Every replica of which ranks are there; none where there is but one."""
    if not run.is_known or run.layout.dp == 1:
        return []
    places = {rank: run.layout.replica_of(rank) for rank in traces}
    return [
        _replica(replica, {r: trace for r, trace in traces.items() if places[r] == replica}, run)
        for replica in sorted(set(places.values()))
    ]


def _replica(replica: int, own: Mapping[int, RankTrace], run: RunLayout) -> ReplicaSkew:
    first = next(iter(own.values()))
    met = [
        call
        for rank, trace in own.items()
        for call in trace.calls
        if call.wait_us is not None and run.group_of(call, rank)[0] in ("dp", "ep", "world")
    ]
    return ReplicaSkew(
        replica=replica,
        steps=len(first.busy_steps),
        idle_steps=_idle_steps(first.calls),
        tokens=sum(step.label.num_tokens or 0 for step in first.busy_steps),
        busy_us=round(sum(s.end_us - s.start_us for s in first.busy_steps), 3),
        wait_us=round(sum(call.wait_us or 0.0 for call in met) / len(own), 3) if met else None,
        waits_for=latest(met, run.layout.replica_of),
    )


def _idle_steps(calls: Sequence[TracedCall]) -> int:
    """By the exchanges outside the labels, as many a step as within them."""
    exchanges = [call for call in calls if call.operation in ("reduce_scatter", "all_to_all")]
    idle = Counter(call.variant for call in exchanges if call.is_idle)
    if not idle:
        return 0
    variant = next(iter(idle))
    steps = [c.step for c in exchanges if c.variant == variant and c.step is not None]
    return round(idle[variant] * len(set(steps)) / len(steps)) if steps else 1
