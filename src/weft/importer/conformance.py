"""Hold what was seen against what the engine should have sent for this model and layout."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from typing import Any, Final, Literal

from weft.closed_form.schedule import rows_of_steps
from weft.closed_form.stage_step import StepRows
from weft.errors import LayoutError
from weft.importer.exchange import Everywhere
from weft.importer.facts import ModelFacts
from weft.importer.layout_inference import RunLayout
from weft.importer.locate import MOST_DEVIATIONS, Deviation, Locator
from weft.importer.rank_trace import RankTrace
from weft.importer.rows import OtherCalls, Tally
from weft.vocabulary.comparison import RowComparison, compare
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.schedule import Collective, Schedule, merge_rows

Rows = dict[tuple[Any, ...], Collective]
ModelSource = Literal["given", "dimensions", "matched", "trace"]
_NAME_IT: Final = "name the model to check it"
_COUNT: Final = attrgetter("count")
PROMPT_LOGPROBS: Final = (
    "requests ask for prompt_logprobs: the logits of prompt tokens are gathered"
)
_TOLD: Final = frozenset({"input_shape", "output_shape", "dtype"})
_EXPERT_COLUMNS: Final = 256
"""vLLM pads the outputs of quantized experts to a multiple of this."""


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """The verdict: ``conforms`` is None where that cannot be said, ``verdict`` says why.

    ``notes`` name the engine's settings that explain rows beyond its usual schedule.
    """

    conforms: bool | None
    verdict: str
    reason: str
    rows: tuple[RowComparison, ...] = ()
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    deviations: tuple[Deviation, ...] = ()

    def to_dict(self, engine: str) -> dict[str, Any]:
        return {
            "engine": engine,
            "conforms": self.conforms,
            "verdict": self.verdict,
            "explanation": self.reason,
            "counts": dict(Counter(row.verdict for row in self.rows)),
            "differences": list(self.differences),
            "deviations": [deviation.to_dict() for deviation in self.deviations],
            "rows": [row.to_dict() for row in self.rows],
        }


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a verdict is made of.

    ``lacking`` says which steps a rank's trace lacks, ``missing`` which ranks are not given.
    """

    schedule: Schedule
    run: RunLayout
    conventions: Conventions | None
    model_source: ModelSource
    facts: ModelFacts
    tally: Tally
    traces: Mapping[int, RankTrace]
    lacking: Sequence[str]
    missing: Sequence[int]
    everywhere: Everywhere

    @property
    def absent(self) -> list[str]:
        """The ranks and steps that are not in the traces, each as one sentence."""
        if not self.missing:
            return list(self.lacking)
        listed = ", ".join(map(str, self.missing[:8])) + (", ..." * (len(self.missing) > 8))
        return [f"rank {listed} of {self.run.world_size} not given", *self.lacking]

    @property
    def stages(self) -> dict[tuple[int, int], int]:
        """A rank of each stage of each replica: the one with the most steps."""
        found: dict[tuple[int, int], int] = {}
        for rank, trace in self.traces.items():
            place = self.run.layout.replica_of(rank), self.run.layout.stage_of(rank)
            other = self.traces[found.setdefault(place, rank)]
            if len(trace.busy_steps) > len(other.busy_steps):
                found[place] = rank
        return found

    def steps(self, rank: int) -> Iterator[StepRows]:
        """The busy steps; ids go out of a chunk's step only if they were seen to."""
        trace, replica = self.traces[rank], self.run.layout.replica_of(rank)
        with_ids = {call.step for call in trace.calls if call.operation == "broadcast"}
        for number, step in enumerate(trace.busy_steps):
            yield StepRows(
                phase=step.label.phase,
                rows=step.label.num_tokens or 0,
                sequences=step.label.num_sequences,
                count=1,
                returns_ids=step.label.phase != "prefill" or number in with_ids,
                everywhere=self.everywhere.get((replica, number)),
            )


def judge(evidence: Evidence) -> Conformance:
    """The verdict on a run, row by row where there is a schedule to hold it against."""
    if obstacle := _obstacle(evidence):
        return Conformance(conforms=None, verdict="not checked", reason=obstacle)
    actual, conventions = evidence.schedule, evidence.conventions
    assert conventions is not None
    expected = _Expected(evidence, conventions)
    rows = tuple(compare(replace(actual, collectives=expected.of_run()), actual))
    multiple = None if conventions.logits == "candidates" else conventions.vocab_multiple
    differences = tuple(evidence.facts.differences(actual.model, multiple))
    faults = list(_faults(rows, differences, evidence))
    deviations = tuple(_deviations(expected.of_ranks, evidence))
    if deviations and not faults:
        faults.append(f"{len(deviations)} calls are in another step than theirs")
    if deviations:
        faults.append(f"first: {deviations[0].text()}")
    conforms, verdict, reason = _conclusion(rows, faults, evidence)
    return Conformance(
        conforms=conforms,
        verdict=verdict,
        reason=reason,
        rows=rows,
        differences=differences,
        notes=tuple(expected.notes),
        deviations=deviations[:MOST_DEVIATIONS],
    )


class _Expected:
    """The rows of each step of each rank, with what the engine's settings and requests add.

    ``notes`` name those settings.
    """

    def __init__(self, evidence: Evidence, conventions: Conventions) -> None:
        self.evidence, self.conventions = evidence, conventions
        self.notes: dict[str, None] = {}
        usual = cache(self._usual)
        stage_of = evidence.run.layout.stage_of
        self.of_ranks: dict[int, list[Rows]] = {
            rank: [dict(usual(stage_of(rank), step)) for step in evidence.steps(rank)]
            for rank in evidence.traces
        }
        self._add_settings()

    def _usual(self, stage: int, step: StepRows) -> Rows:
        """The closed form of one step, as far as the trace tells rows apart."""
        schedule = self.evidence.schedule
        rows = rows_of_steps(schedule.model, schedule.layout, [step], self.conventions, [stage])
        if step.everywhere is None and schedule.layout.dp > 1:
            rows = tuple(
                replace(row, input_shape=None, output_shape=None) if _is_exchange(row) else row
                for row in rows
            )
        found = loosened(rows, schedule.collectives)
        return {row.key: row for row in found if 0 not in (row.input_shape or ())}

    def _add_settings(self) -> None:
        usual = {
            key: row
            for steps in self.of_ranks.values()
            for rows in steps
            for key, row in rows.items()
        }
        gathering = {(row.stage, row.phase) for row in usual.values() if row.op == "all_gather"}
        stage_of = self.evidence.run.layout.stage_of
        of_prompts: dict[tuple[int, int], Rows] = defaultdict(dict)
        for rank, calls in self.evidence.tally.calls.items():
            for number, placed in calls.items():
                counts = Counter(row for row, *_ in placed if row.key not in usual)
                for row, count in counts.items():
                    if self._is_of_prompts(row) and (row.stage, row.phase) in gathering:
                        own = of_prompts[stage_of(rank), number]
                        own[row.key] = max(
                            own.get(row.key, row), replace(row, count=count), key=_COUNT
                        )
                    else:
                        self._take_padded(row, count, self.of_ranks[rank][number])
        for (stage, number), rows in of_prompts.items():
            for rank, steps in self.of_ranks.items():
                if stage_of(rank) == stage and number < len(steps):
                    steps[number] |= rows
        if of_prompts:
            self.notes[PROMPT_LOGPROBS] = None

    def _is_of_prompts(self, row: Collective) -> bool:
        """Whether the logits of prompt tokens are gathered; requests decide how often."""
        schedule = self.evidence.schedule
        shard = self.conventions.logits_shard(schedule.model.vocab_size, schedule.layout.tp)
        is_logits = row.op == "all_gather" and row.group == "tp" and _width(row) == shard
        return is_logits and row.phase in ("prefill", "mixed")

    def _take_padded(self, row: Collective, count: int, rows: Rows) -> None:
        """Every second all-reduce of a step, the experts', may have padded columns."""
        hidden = self.evidence.schedule.model.hidden_size
        padded = -(-hidden // _EXPERT_COLUMNS) * _EXPERT_COLUMNS
        if (
            row.op != "all_reduce"
            or row.group != "tp"
            or _width(row) != padded
            or row.input_shape is None
        ):
            return
        plain = (row.input_shape[0], hidden)
        whole = rows.get(replace(row, input_shape=plain, output_shape=plain).key)
        if whole is not None and whole.count < 4 * count:
            half = whole.count // 2
            rows |= {
                whole.key: replace(whole, count=whole.count - half),
                row.key: replace(row, count=half),
            }
            self.notes[f"the experts' outputs are padded to {padded} columns"] = None

    def of_run(self) -> tuple[Collective, ...]:
        """The steps of each stage together, of the replica with the most of a kind."""
        most: Rows = {}
        for rank in self.evidence.stages.values():
            for row in merge_rows(row for rows in self.of_ranks[rank] for row in rows.values()):
                most[row.key] = max(most.get(row.key, row), row, key=_COUNT)
        return merge_rows(most.values())


def _is_exchange(row: Collective) -> bool:
    """Whether its size depends on the rows of the other replicas."""
    return row.group == "ep" and row.op in ("all_gather", "reduce_scatter")


def _width(row: Collective) -> int | None:
    return row.input_shape[1] if row.input_shape and len(row.input_shape) == 2 else None


def _deviations(expected: Mapping[int, Sequence[Rows]], evidence: Evidence) -> list[Deviation]:
    """Every call that differs, step by step and rank by rank, earliest first."""
    locator = Locator(evidence.run, evidence.traces, evidence.tally.calls, evidence.schedule.model)
    found = [*locator.deviations(expected), *map(_unexplained, evidence.tally.unexplained)]
    found.sort(key=lambda d: (d.step is None, d.step or 0, d.time_us))
    is_timed = all(trace.is_timed for trace in evidence.traces.values())
    return found if is_timed else [replace(d, time_us=None) for d in found]


def _unexplained(calls: OtherCalls) -> Deviation:
    return Deviation(
        kind="unexplained",
        rank=calls.ranks[0],
        stage=calls.stage,
        phase=calls.phase,
        op=calls.name,
        time_us=calls.first_us or 0.0,
    )


def _obstacle(evidence: Evidence) -> str | None:
    """Why there is nothing to hold the traces against."""
    ranks = evidence.stages.values()
    labels = [step.label for rank in ranks for step in evidence.traces[rank].busy_steps]
    if evidence.conventions is None or not evidence.run.is_known:
        return _unknown_run(evidence)
    if any(trace.truncated or trace.num_damaged for trace in evidence.traces.values()):
        return "the traces are partial"
    if not labels:
        return "the traces have no step labels, so the steps are not known"
    if any(label.num_tokens is None for label in labels):
        return "some step labels do not tell their tokens"
    reduced = any(row.op == "all_reduce" for row in evidence.schedule.collectives)
    if labels[0].family == "weft" and evidence.run.layout.tp > 1 and not reduced:
        return (
            "weft's own all-reduce on a CPU leaves nothing in a profile; record with the library's"
        )
    return _exchange_obstacle(evidence, evidence.conventions)


def _unknown_run(evidence: Evidence) -> str:
    if evidence.conventions is None:
        return f"engine {evidence.schedule.engine} has no schedule to hold the trace against"
    return "the traces do not say how many ranks took part; give the layout, e.g. tp2"


def _exchange_obstacle(evidence: Evidence, conventions: Conventions) -> str | None:
    """Why the rows that travel to experts cannot be judged."""
    if evidence.run.layout.ep == 1:
        return None
    if not conventions.spreads_experts:
        return f"weft does not know how engine {conventions.name} exchanges rows with experts"
    if evidence.model_source == "trace":
        return (
            f"experts over {evidence.run.layout.ep} ranks are checked against a model; {_NAME_IT}"
        )
    try:
        conventions.exchange_of(evidence.run.layout)
    except LayoutError as error:
        return str(error)
    return None


def _faults(
    rows: Sequence[RowComparison], differences: Sequence[str], evidence: Evidence
) -> Iterator[str]:
    failed = [row for row in rows if row.verdict != "equal"]
    causes = [*(differences if failed else ()), *evidence.tally.disagreements]
    if failed:
        more = f" ({'; '.join(causes)})" if causes else ""
        yield f"{len(failed)} of {len(rows)} rows differ. {explain(failed[0])}{more}"
    elif causes:
        yield "; ".join(causes)
    for calls in evidence.tally.unexplained:
        yield (
            f"{calls.count} x {calls.name} ({calls.phase}, stage {calls.stage}): "
            f"{calls.reason}, and the schedule has no such calls"
        )


def _conclusion(
    rows: Sequence[RowComparison], faults: Sequence[str], evidence: Evidence
) -> tuple[bool | None, str, str]:
    num_rows, absent = len(rows), evidence.absent
    unknown = _unknown_dimension(evidence) if _only_sizes_differ(rows) else []
    is_given = evidence.model_source in ("given", "dimensions")
    if faults and evidence.model_source == "dimensions":
        why = "weft knows no schedule of this model's family, only its dimensions"
        return None, "cannot tell", f"{why}; against a dense decoder: {'; '.join(faults)}"
    if faults and (evidence.lacking or ((absent or unknown) and not is_given)):
        why = "; ".join([*absent, *unknown, *(() if is_given else [_NAME_IT])])
        return None, "cannot tell", f"{why}; seen from here: {'; '.join(faults)}"
    if faults:
        return False, "does not conform", "; ".join(faults)
    if absent:
        return (
            None,
            "cannot tell",
            f"{'; '.join(absent)}; all {num_rows} rows that are there are as expected",
        )
    if is_given:
        return True, "conforms", f"all {num_rows} rows are as expected"
    like = f" and with {evidence.schedule.model.name}" if evidence.model_source == "matched" else ""
    return (
        None,
        "consistent with itself",
        (f"all {num_rows} rows agree with each other{like}; name the model to check it"),
    )


def _only_sizes_differ(rows: Sequence[RowComparison]) -> bool:
    missing = {_kind(row.row) for row in rows if row.verdict == "missing"}
    return missing == {_kind(row.row) for row in rows if row.verdict == "surplus"}


def _unknown_dimension(evidence: Evidence) -> list[str]:
    if evidence.model_source != "trace":
        return []
    facts, layout = evidence.facts, evidence.schedule.layout
    names = {
        "hidden size": facts.hidden_size,
        "vocabulary": facts.vocab_size if layout.tp > 1 else 1,
        "number of layers": facts.num_layers if layout.tp > 1 else 1,
    }
    unknown = [name for name, value in names.items() if value is None]
    return [f"the traces do not show the model's {' and '.join(unknown)}"] if unknown else []


def loosened(
    expected: Iterable[Collective], actual: Iterable[Collective]
) -> tuple[Collective, ...]:
    """Drop from expected rows what no row of their kind in the trace tells: shapes, dtype."""
    told: dict[tuple[Any, ...], frozenset[str]] = defaultdict(frozenset)
    for row in actual:
        told[_kind(row)] |= {name for name in _TOLD if getattr(row, name) is not None}

    def like(row: Collective) -> Collective:
        unknown: dict[str, Any] = dict.fromkeys(_TOLD - told.get(_kind(row), _TOLD))
        return replace(row, **unknown)

    return merge_rows(map(like, expected))


def _kind(row: Collective) -> tuple[Any, ...]:
    return row.stage, row.phase, row.op, row.group, row.group_size


def explain(row: RowComparison) -> str:
    """One sentence on a row that is not equal."""
    call = row.row
    size = "of unknown size" if call.input_shape is None else f"{list(call.input_shape)}"
    expected, actual = (side.count if side else "none" for side in (row.expected, row.actual))
    return (
        f"stage {call.stage}, {call.phase}: {call.op} {size} over {call.group}: "
        f"{expected} calls expected, {actual} in the trace"
    )
