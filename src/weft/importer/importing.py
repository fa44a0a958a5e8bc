"""``weft import`` without its command line: trace files in, one ImportedTrace out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weft.errors import FileFormatError
from weft.importer.clocks import ClockOffset, estimate_offsets
from weft.importer.conformance import Conformance, expected_rows, judge, not_checked
from weft.importer.engines import conventions_of, engine_of
from weft.importer.facts import ModelFacts, read_facts
from weft.importer.imported import ImportedTrace
from weft.importer.layout_inference import infer_layout
from weft.importer.load import load_ranks
from weft.importer.pairing import meetings, share_sizes, split_waiting
from weft.importer.rank_trace import RankTrace
from weft.importer.rows import Adder, OtherCalls, Tally
from weft.importer.run_check import by_rank, check_steps
from weft.importer.sizes import Sizer
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Schedule
from weft.vocabulary.workload import Workload


def import_traces(
    paths: Sequence[Path],
    *,
    model: ModelSpec | None = None,
    engine: str = "auto",
    layout: Layout | None = None,
    num_processes: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> ImportedTrace:
    """Read the traces of one run's ranks and hold them against the engine's schedule.

    ``on_bytes`` is told of progress in bytes of the files.

    Raises FileFormatError for files that are no traces, hold no collectives or are not
    of one run, LayoutError for a layout that the ranks or the model contradict.
    """
    traces = by_rank(load_ranks(paths, num_processes, on_bytes))
    _check_distributed(traces)
    layout = layout or infer_layout(list(traces.values()))
    _check_layout(traces, layout)
    notes = check_steps(traces, layout)
    found = meetings(traces, layout)
    share_sizes(found)
    clocks = estimate_offsets(list(traces), found)
    split_waiting(found, lambda rank: clocks[rank].offset_us)
    name = engine_of(list(traces.values()), engine)
    conventions, more = conventions_of(name, list(traces.values()), layout)
    facts = read_facts(traces, layout)
    layout, split_notes = _with_stage_layers(layout, facts, model)
    spec, model_source, model_notes = _model(model, facts)
    known = spec if model_source != "trace" else None
    tally = _tally(traces, layout, known, facts, conventions)
    notes += [*more, *split_notes, *model_notes, *_trace_notes(traces)]
    workload = _workload(traces)
    if workload is None and any(trace.busy_steps for trace in traces.values()):
        notes.append("served traffic: steps of unlike batches, no single prompt and decode length")
    schedule = Schedule(
        source="import",
        engine=name,
        model=spec,
        layout=layout,
        workload=workload or Workload(prompt_tokens=1, decode_tokens=1, batch=1),
        collectives=tuple(measured.row for measured in tally.rows),
    )
    verdict = _verdict(traces, schedule, conventions, facts, tally)
    return ImportedTrace(
        schedule=schedule,
        model_source=model_source,
        facts=facts,
        is_uniform=workload is not None,
        rows=tuple(tally.rows),
        control=(*tally.control, *_ignored(traces, layout)),
        unexplained=(*tally.unexplained, *_surplus(verdict)),
        conformance=verdict,
        clocks=_clocks(clocks),
        notes=tuple(notes),
        traces=traces,
    )


def _check_distributed(traces: Mapping[int, RankTrace]) -> None:
    if any(trace.calls or (trace.world_size or 1) > 1 for trace in traces.values()):
        return
    path = next(iter(traces.values())).path
    raise FileFormatError(
        f"{path}: a trace of one process, without a collective; trace a run with two or more ranks"
    )


def _check_layout(traces: Mapping[int, RankTrace], layout: Layout) -> None:
    highest = max(traces)
    if highest >= layout.world_size:
        layout.check_world(max(highest + 1, *(t.world_size or 1 for t in traces.values())))


def _with_stage_layers(
    layout: Layout, facts: ModelFacts, model: ModelSpec | None
) -> tuple[Layout, list[str]]:
    """Take over an uneven split of the layers where all stages show theirs."""
    total = facts.num_layers
    if (
        total is None
        or layout.pp == 1
        or layout.stage_layers
        or (model and model.num_layers != total)
    ):
        return layout, []
    seen = tuple(facts.stage_layers[stage] for stage in range(layout.pp))
    if seen == tuple(map(len, layout.layers_of_stages(total))):
        return layout, []
    note = f"the stages hold {', '.join(map(str, seen))} layers, not the even split"
    return replace(layout, stage_layers=seen), [note]


def _model(model: ModelSpec | None, facts: ModelFacts) -> tuple[ModelSpec, str, list[str]]:
    if model is not None:
        return model, "given", []
    candidates = facts.matching_models()
    if len(candidates) == 1:
        name = candidates[0].name
        return candidates[0], "matched", [f"model {name}: the one with the dimensions seen"]
    note = "the model's dimensions are those the collectives show; name it with --model"
    return facts.stand_in(), "trace", [note]


def _tally(
    traces: Mapping[int, RankTrace],
    layout: Layout,
    spec: ModelSpec | None,
    facts: ModelFacts,
    conventions: Conventions | None,
) -> Tally:
    sizer = Sizer(spec=spec, layout=layout, conventions=conventions, activation_dtype=facts.dtype)
    return Adder(layout, sizer).tally(traces)


def _trace_notes(traces: Mapping[int, RankTrace]) -> list[str]:
    notes = []
    if any(trace.num_graph_launches for trace in traces.values()):
        notes.append(
            "CUDA graphs: an engine may pad a captured step; sizes from the model are the label's"
        )
    for trace in traces.values():
        if trace.truncated:
            notes.append(f"partial: {trace.path.name} breaks off after {trace.num_events} events")
        if trace.num_damaged:
            notes.append(f"partial: {trace.num_damaged} events of {trace.path.name} are damaged")
    return notes


def _workload(traces: Mapping[int, RankTrace]) -> Workload | None:
    """The request behind the steps: one prefill of equal prompts, then decoding all of them."""
    labels = [step.label for step in next(iter(traces.values())).busy_steps]
    if not labels or labels[0].phase != "prefill" or not labels[0].context_tokens:
        return None
    batch, tokens = labels[0].context_requests, labels[0].context_tokens
    alike = all(
        label.phase == "decode" and label.generation_tokens == label.generation_requests == batch
        for label in labels[1:]
    )
    if not alike or tokens % batch:
        return None
    return Workload(prompt_tokens=tokens // batch, decode_tokens=len(labels), batch=batch)


def _verdict(
    traces: Mapping[int, RankTrace],
    schedule: Schedule,
    conventions: Conventions | None,
    facts: ModelFacts,
    tally: Tally,
) -> Conformance:
    if conventions is None:
        return not_checked(f"engine {schedule.engine} has no schedule to hold the trace against")
    if any(trace.truncated or trace.num_damaged for trace in traces.values()):
        return not_checked("the traces are partial")
    stages = _first_of_stages(traces, schedule.layout)
    if not any(trace.busy_steps for trace in stages.values()):
        return not_checked("the traces have no step labels, so the steps are not known")
    labels = [step.label for trace in stages.values() for step in trace.busy_steps]
    if any(label.num_tokens is None for label in labels):
        return not_checked("some step labels do not tell their tokens")
    expected = expected_rows(schedule.model, schedule.layout, conventions, stages)
    return judge(expected, schedule, facts, conventions.vocab_multiple, tally.disagreements)


def _first_of_stages(traces: Mapping[int, RankTrace], layout: Layout) -> dict[int, RankTrace]:
    stages: dict[int, RankTrace] = {}
    for rank, trace in traces.items():
        stages.setdefault(layout.stage_of(rank), trace)
    return stages


def _ignored(traces: Mapping[int, RankTrace], layout: Layout) -> list[OtherCalls]:
    return [
        OtherCalls(
            operation=name,
            name="record_param_comms",
            stage=layout.stage_of(rank),
            phase="other",
            count=count,
            reason="waits for or groups earlier calls; moves no bytes of its own",
        )
        for rank, trace in traces.items()
        for name, count in trace.ignored.items()
    ]


def _surplus(verdict: Conformance) -> list[OtherCalls]:
    """Rows that the engine's schedule does not have are unexplained."""
    if verdict.conforms is None:
        return []
    return [
        OtherCalls(
            operation=row.actual.op,
            name=f"{row.actual.op} {list(row.actual.input_shape or ())}",
            stage=row.actual.stage,
            phase=row.actual.phase,
            count=row.actual.count,
            reason="the engine's schedule does not have it",
        )
        for row in verdict.rows
        if row.verdict == "surplus" and row.actual is not None
    ]


def _clocks(clocks: Mapping[int, ClockOffset]) -> tuple[ClockOffset, ...]:
    return tuple(clocks[rank] for rank in sorted(clocks)) if len(clocks) > 1 else ()
