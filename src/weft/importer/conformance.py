"""Hold what was seen against what the engine should have sent for this model and layout."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weft.closed_form.schedule import Step, rows_of_steps
from weft.importer.facts import ModelFacts
from weft.importer.labels import StepLabel
from weft.importer.rank_trace import RankTrace
from weft.vocabulary.comparison import RowComparison, compare
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective, Schedule, merge_rows


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """The verdict: ``conforms`` is None where nothing could be held against the trace."""

    conforms: bool | None
    reason: str
    rows: tuple[RowComparison, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def first_mismatch(self) -> RowComparison | None:
        return next((row for row in self.rows if row.verdict != "equal"), None)

    def to_json(self, engine: str) -> dict[str, Any]:
        return {
            "engine": engine,
            "conforms": self.conforms,
            "explanation": self.reason,
            "counts": dict(Counter(row.verdict for row in self.rows)),
            "differences": list(self.differences),
            "rows": [_comparison_json(row) for row in self.rows],
        }


def not_checked(reason: str) -> Conformance:
    return Conformance(conforms=None, reason=reason)


def expected_rows(
    spec: ModelSpec,
    layout: Layout,
    conventions: Conventions,
    stages: Mapping[int, RankTrace],
) -> tuple[Collective, ...]:
    """The closed form of the steps that the labels of each stage name."""
    rows: list[Collective] = []
    for stage, trace in stages.items():
        rows += rows_of_steps(spec, layout, _steps(trace), conventions, [stage])
    return merge_rows(rows)


def _steps(trace: RankTrace) -> list[Step]:
    """The busy steps, equal ones together; ids go out of a chunk's step only if they were seen to."""
    with_ids = {call.step for call in trace.calls if call.operation == "broadcast"}
    counts: Counter[tuple[StepLabel, bool]] = Counter()
    for number, step in enumerate(trace.busy_steps):
        may_skip = step.label.phase == "prefill" and number not in with_ids
        counts[step.label, not may_skip] += 1
    return [
        Step(
            phase=label.phase,
            rows=label.num_tokens or 0,
            sequences=label.num_sequences,
            count=count,
            returns_ids=returns_ids,
        )
        for (label, returns_ids), count in counts.items()
    ]


def judge(
    expected: Sequence[Collective],
    actual: Schedule,
    facts: ModelFacts,
    vocab_multiple: int,
    disagreements: Sequence[str],
) -> Conformance:
    """Compare row by row; say which dimension of the model explains a mismatch."""
    wanted = replace(actual, collectives=loosened(expected, actual.collectives))
    rows = compare(wanted, actual)
    failed = [row for row in rows if row.verdict != "equal"]
    differences = tuple(facts.differences(actual.model, vocab_multiple))
    if not failed and not disagreements:
        return Conformance(
            conforms=True, reason=f"all {len(rows)} rows are as expected", rows=tuple(rows)
        )
    causes = "; ".join([*differences, *disagreements])
    first = explain(failed[0]) if failed else ""
    reason = f"{len(failed)} of {len(rows)} rows differ. {first}" if failed else causes
    if failed and causes:
        reason += f" ({causes})"
    return Conformance(conforms=False, reason=reason, rows=tuple(rows), differences=differences)


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


def _comparison_json(row: RowComparison) -> dict[str, Any]:
    return {
        "verdict": row.verdict,
        "row": row.row.to_json(),
        "counts": {
            "expected": row.expected.count if row.expected else None,
            "actual": row.actual.count if row.actual else None,
        },
    }
