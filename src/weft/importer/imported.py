"""The result of an import, and its JSON form (``weft.schedule/1`` with times and a verdict)."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from weft.importer.analysis import time_share, timeline, waiting
from weft.importer.clocks import ClockOffset
from weft.importer.conformance import Conformance
from weft.importer.facts import ModelFacts
from weft.importer.gain import Gain
from weft.importer.layout_inference import RunLayout
from weft.importer.rank_trace import RankTrace
from weft.importer.replicas import ReplicaSkew
from weft.importer.rows import MeasuredRow, OtherCalls
from weft.vocabulary.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class ImportedTrace:
    """One run as its traces tell it.

    ``model_source`` says where the model's dimensions come from: ``given``,
    ``matched`` (a built-in model with the dimensions seen) or ``trace`` (only what the
    collectives show; unknown dimensions are null in the JSON form). ``is_uniform``:
    the steps are those of one batch of equal requests, which ``schedule.workload`` holds.
    """

    schedule: Schedule
    run: RunLayout
    model_source: str
    facts: ModelFacts
    is_uniform: bool
    rows: tuple[MeasuredRow, ...]
    control: tuple[OtherCalls, ...]
    unexplained: tuple[OtherCalls, ...]
    conformance: Conformance
    clocks: tuple[ClockOffset, ...]
    notes: tuple[str, ...]
    traces: dict[int, RankTrace]
    gains: tuple[Gain, ...] = ()
    replicas: tuple[ReplicaSkew, ...] = ()

    @property
    def is_partial(self) -> bool:
        return any(trace.truncated or trace.num_damaged for trace in self.traces.values())

    def to_dict(self) -> dict[str, Any]:
        """The contract's object, with what only an import has beside it."""
        document = self.schedule.to_dict()
        document["collectives"] = [row.to_dict() for row in self.rows]
        document["unexplained"] = [calls.to_dict() for calls in self.unexplained]
        document["control"] = [calls.to_dict() for calls in self.control]
        document["conformance"] = self.conformance.to_dict(self.schedule.engine)
        document["model"]["source"] = self.model_source
        if self.model_source == "trace":
            document["model"] |= {
                name: getattr(self.facts, name)
                for name in ("num_layers", "hidden_size", "vocab_size")
            }
        if not self.run.is_known:
            document["layout"] = dict.fromkeys(document["layout"])
        document["world_size"] = self.run.world_size
        unknown = sum(row.row.count for row in self.rows if row.row.volume_bytes is None)
        document["totals"]["unknown_calls"] = unknown
        if not self.is_uniform:
            document["workload"] = dict.fromkeys(document["workload"])
        document["steps"] = self._steps()
        document["ranks"] = [_rank_json(rank, trace) for rank, trace in self.traces.items()]
        document["clocks"] = [clock.to_dict() for clock in self.clocks]
        document["notes"] = list(self.notes)
        document["partial"] = self.is_partial
        clocks = {clock.rank: clock for clock in self.clocks}
        timed = {rank: trace for rank, trace in self.traces.items() if trace.is_timed}
        document["time_share"] = time_share(next(iter(timed.values()))) if timed else []
        document["gains"] = [gain.to_dict() for gain in self.gains]
        document["replicas"] = [asdict(replica) for replica in self.replicas]
        document["waiting"] = waiting(timed)
        layout = self.schedule.layout
        document["timeline"] = timeline(timed, clocks, layout, self._place()) if timed else []
        return document

    def _place(self) -> tuple[int, int] | None:
        """The rank and step of the first call that differs."""
        found = self.conformance.deviations
        return next(((d.rank, d.step) for d in found if d.step is not None), None)

    def _steps(self) -> list[dict[str, Any]]:
        first = next(iter(self.traces.values()))
        counts = Counter(step.label for step in first.busy_steps)
        return [
            {
                "phase": label.phase,
                "tokens": label.num_tokens,
                "context_requests": label.context_requests,
                "generation_requests": label.generation_requests,
                "count": count,
            }
            for label, count in counts.items()
        ]


def _rank_json(rank: int, trace: RankTrace) -> dict[str, Any]:
    return {
        "rank": rank,
        "file": trace.path.name,
        "events": trace.num_events,
        "calls": len(trace.calls),
        "truncated": trace.truncated,
        "damaged_events": trace.num_damaged,
        "ignored": trace.ignored,
    }
