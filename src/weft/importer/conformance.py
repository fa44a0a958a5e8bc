"""Hold what was seen against what the engine should have sent for this model and layout."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Literal

from weft.closed_form.schedule import StepRows, rows_of_steps
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

ModelSource = Literal["given", "dimensions", "matched", "trace"]
_NAME_IT: Final = "name the model to check it"
PROMPT_LOGPROBS: Final = (
    "requests ask for prompt_logprobs: the logits of prompt tokens are gathered"
)
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

    def to_json(self, engine: str) -> dict[str, Any]:
        return {
            "engine": engine,
            "conforms": self.conforms,
            "verdict": self.verdict,
            "explanation": self.reason,
            "counts": dict(Counter(row.verdict for row in self.rows)),
            "differences": list(self.differences),
            "deviations": [deviation.to_json() for deviation in self.deviations],
            "rows": [row.to_json() for row in self.rows],
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
    of_step = _StepSchedules(evidence, conventions)
    expected = of_step.of_run()
    settings = _settings(expected, evidence, conventions)
    rows = tuple(compare(replace(actual, collectives=settings.rows), actual))
    multiple = None if conventions.logits == "candidates" else conventions.vocab_multiple
    differences = tuple(evidence.facts.differences(actual.model, multiple))
    faults = list(_faults(rows, differences, evidence))
    deviations = tuple(_deviations(settings, evidence, of_step))
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
        notes=tuple(settings.notes),
        deviations=deviations[:MOST_DEVIATIONS],
    )


class _StepSchedules:
    """The closed form of single steps, as far as the trace tells rows apart."""

    def __init__(self, evidence: Evidence, conventions: Conventions) -> None:
        self.evidence, self.conventions = evidence, conventions
        self.of = lru_cache(maxsize=None)(self._of)

    def _of(self, stage: int, step: StepRows) -> tuple[Collective, ...]:
        schedule = self.evidence.schedule
        rows = rows_of_steps(schedule.model, schedule.layout, [step], self.conventions, [stage])
        return loosened(rows, schedule.collectives)

    def of_run(self) -> tuple[Collective, ...]:
        """The steps that the labels of each stage name, of the replica with the most of a kind."""
        most: dict[tuple[Any, ...], Collective] = {}
        for (_, stage), rank in self.evidence.stages.items():
            steps = self.evidence.steps(rank)
            for row in merge_rows(row for step in steps for row in self.of(stage, step)):
                if row.key not in most or most[row.key].count < row.count:
                    most[row.key] = row
        return merge_rows(most.values())


def _deviations(
    settings: _Settings, evidence: Evidence, schedules: _StepSchedules
) -> list[Deviation]:
    """Every call that differs, step by step and rank by rank, earliest first."""
    run = evidence.run
    calls = {
        rank: {
            step: [(settings.usual.get(r.key, r), begin, end) for r, begin, end in placed]
            for step, placed in steps.items()
        }
        for rank, steps in evidence.tally.calls.items()
    }
    beyond = _beyond(settings, evidence)
    wanted = {
        rank: [
            {row.key: row for row in schedules.of(run.layout.stage_of(rank), step)}
            | beyond.get((run.layout.stage_of(rank), number), {})
            for number, step in enumerate(evidence.steps(rank))
        ]
        for rank in evidence.traces
    }
    locator = Locator(run, evidence.traces, calls, evidence.schedule.model)
    found = [*locator.deviations(wanted), *map(_unexplained, evidence.tally.unexplained)]
    found.sort(key=lambda d: (d.step is None, d.step or 0, d.time_us))
    is_timed = all(trace.is_timed for trace in evidence.traces.values())
    return found if is_timed else [replace(d, time_us=None) for d in found]


def _beyond(
    settings: _Settings, evidence: Evidence
) -> dict[tuple[int, int], dict[tuple[Any, ...], Collective]]:
    """Rows that requests add, by stage and step: as often as the rank with most of them has them."""
    found: dict[tuple[int, int], dict[tuple[Any, ...], Collective]] = defaultdict(dict)
    for rank, steps in evidence.tally.calls.items():
        for step, placed in steps.items():
            own = found[evidence.run.layout.stage_of(rank), step]
            counts = Counter(row.key for row, *_ in placed if row.key in settings.beyond)
            rows = {row.key: row for row, *_ in placed}
            for key, count in counts.items():
                if key not in own or own[key].count < count:
                    own[key] = replace(rows[key], count=count)
    return found


def _unexplained(calls: OtherCalls) -> Deviation:
    return Deviation(
        kind="unexplained",
        rank=calls.ranks[0],
        stage=calls.stage,
        step=None,
        phase=calls.phase,
        layer=None,
        part=None,
        op=calls.name,
        shape=None,
        time_us=calls.first_us or 0.0,
    )


def _obstacle(evidence: Evidence) -> str | None:
    """Why there is nothing to hold the traces against."""
    ranks = evidence.stages.values()
    labels = [step.label for rank in ranks for step in evidence.traces[rank].busy_steps]
    if evidence.conventions is None:
        return f"engine {evidence.schedule.engine} has no schedule to hold the trace against"
    if not evidence.run.is_known:
        return "the traces do not say how many ranks took part; give the layout, e.g. tp2"
    if any(trace.truncated or trace.num_damaged for trace in evidence.traces.values()):
        return "the traces are partial"
    if not labels:
        return "the traces have no step labels, so the steps are not known"
    if any(label.num_tokens is None for label in labels):
        return "some step labels do not tell their tokens"
    return _exchange_obstacle(evidence, evidence.conventions)


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
        conventions.exchange_of(evidence.schedule.model, evidence.run.layout)
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


@dataclass(kw_only=True)
class _Settings:
    """The expected rows with what a setting of the engine or of its requests adds to them.

    ``beyond``: keys of rows that the usual schedule lacks; ``usual``: for a row that takes
    the place of another one, that other one; ``notes`` name the settings.
    """

    rows: tuple[Collective, ...]
    beyond: set[tuple[Any, ...]] = field(default_factory=set)
    usual: dict[tuple[Any, ...], Collective] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)


def _settings(
    expected: Sequence[Collective], evidence: Evidence, conventions: Conventions
) -> _Settings:
    wanted = {row.key: row for row in expected}
    found = _Settings(rows=())
    spec, layout = evidence.schedule.model, evidence.schedule.layout
    shard = conventions.logits_shard(spec.vocab_size, layout.tp)
    padded = -(-spec.hidden_size // _EXPERT_COLUMNS) * _EXPERT_COLUMNS
    for row in evidence.schedule.collectives:
        shape = row.input_shape
        if row.key in wanted or shape is None or len(shape) != 2 or row.group != "tp":
            continue
        if shape[1] == shard and row.phase in ("prefill", "mixed") and _is_logits(row, expected):
            wanted[row.key] = row
            found.beyond.add(row.key)
            found.notes[PROMPT_LOGPROBS] = None
        elif row.op == "all_reduce" and shape[1] == padded != spec.hidden_size:
            plain = (shape[0], spec.hidden_size)
            whole = wanted.get(replace(row, input_shape=plain, output_shape=plain).key)
            if whole is not None and whole.count >= 2 * row.count:
                wanted[whole.key] = replace(whole, count=whole.count - row.count)
                wanted[row.key] = row
                found.usual[row.key] = whole
                found.notes[f"the experts' outputs are padded to {padded} columns"] = None
    found.rows = tuple(wanted.values())
    return found


def _is_logits(row: Collective, expected: Sequence[Collective]) -> bool:
    """Whether the schedule has another all-gather of the vocabulary's shards in this phase."""
    return row.op == "all_gather" and any(
        other.op == "all_gather" and (other.phase, other.stage) == (row.phase, row.stage)
        for other in expected
    )


def loosened(
    expected: Iterable[Collective], actual: Iterable[Collective]
) -> tuple[Collective, ...]:
    """Drop from expected rows what no row of their kind in the trace tells: shapes, dtype."""
    shapes: dict[tuple[Any, ...], bool] = defaultdict(bool)
    dtypes: dict[tuple[Any, ...], bool] = defaultdict(bool)
    for row in actual:
        shapes[_kind(row)] |= row.input_shape is not None
        dtypes[_kind(row)] |= row.dtype is not None
    return merge_rows(_like(row, shapes, dtypes) for row in expected)


def _like(
    row: Collective,
    shapes: Mapping[tuple[Any, ...], bool],
    dtypes: Mapping[tuple[Any, ...], bool],
) -> Collective:
    kind = _kind(row)
    if kind in shapes and not shapes[kind]:
        row = replace(row, input_shape=None, output_shape=None)
    if kind in dtypes and not dtypes[kind]:
        row = replace(row, dtype=None)
    return row


def _kind(row: Collective) -> tuple[Any, ...]:
    return row.stage, row.phase, row.op, row.group, row.group_size


def explain(row: RowComparison) -> str:
    """One sentence on a row that is not equal."""
    call = row.row
    where = f"stage {call.stage}, {call.phase}: {call.op} {_shape(call)} over {call.group}"
    if row.verdict == "missing" and row.expected:
        return f"{where}: {row.expected.count} calls expected, none in the trace"
    if row.verdict == "surplus" and row.actual:
        return f"{where}: {row.actual.count} calls in the trace, none expected"
    assert row.expected is not None
    assert row.actual is not None
    return f"{where}: {row.expected.count} calls expected, {row.actual.count} in the trace"


def _shape(row: Collective) -> str:
    return "of unknown size" if row.input_shape is None else f"{list(row.input_shape)}"
