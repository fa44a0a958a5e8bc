"""``weft import`` without its command line: trace files in, one ImportedTrace out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from weft.errors import FileFormatError
from weft.importer.clocks import estimate_offsets, split_waiting
from weft.importer.conformance import Conformance, Evidence, ModelSource, judge
from weft.importer.engines import conventions_of, engine_of
from weft.importer.exchange import (
    mark_exchange,
    rows_everywhere,
    spread_experts,
    with_kernels,
)
from weft.importer.facts import ModelFacts, read_facts
from weft.importer.gain import BestTime, gains
from weft.importer.imported import ImportedTrace
from weft.importer.inputs import GivenModel
from weft.importer.layout_inference import RunLayout, given_layout, infer_layout
from weft.importer.load import load_ranks
from weft.importer.pairing import meetings, share_sizes
from weft.importer.rank_trace import RankTrace
from weft.importer.replicas import replicas
from weft.importer.rows import Adder, OtherCalls, Tally
from weft.importer.run_check import by_rank, check_clocks, check_models, check_steps
from weft.importer.sizes import Sizer
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Schedule
from weft.vocabulary.workload import Workload

_NO_TIMES: Final = (
    "execution traces have no times: give the profiler's traces of the same run with them"
)


def import_traces(
    paths: Sequence[Path],
    *,
    model: ModelSpec | GivenModel | None = None,
    engine: str = "auto",
    layout: Layout | None = None,
    num_processes: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    best: BestTime | None = None,
) -> ImportedTrace:
    """Read the traces of one run's ranks and hold them against the engine's schedule.

    ``on_bytes`` is told of progress in bytes of the files; ``best`` tells the fastest known
    algorithm of a row's message on a fabric, for what would be gained with it.

    Raises FileFormatError for files that are no traces, hold no collectives or are not
    of one run, LayoutError for a layout that the ranks or the model contradict.
    """
    traces = by_rank(load_ranks(paths, num_processes, on_bytes))
    _check_distributed(traces)
    given = GivenModel(spec=model) if isinstance(model, ModelSpec) else model
    ranks = list(traces.values())
    name = engine_of(ranks, engine)
    run = given_layout(layout, ranks) if layout else infer_layout(ranks, name)
    run, exchange_notes = spread_experts(run, traces)
    mark_exchange(traces, run)
    lacking = check_steps(traces, run.layout)
    check_models({rank: read_facts({rank: trace}, run) for rank, trace in traces.items()}, traces)
    found = meetings(traces, run)
    share_sizes(found)
    is_timed = all(trace.is_timed for trace in ranks)
    clocks = estimate_offsets(list(traces), found if is_timed else [])
    notes = check_clocks(clocks, traces) if is_timed else [_NO_TIMES]
    split_waiting(found if is_timed else [], clocks)
    conventions, more = conventions_of(name, ranks, run.layout)
    facts = read_facts(traces, run)
    run, split_notes = _with_stage_layers(run, facts, given.spec if given else None)
    spec, model_source, model_notes = _model(given, facts)
    known = spec if model_source != "trace" else None
    if conventions is not None:
        conventions = with_kernels(conventions, traces, run, spec)
    everywhere = rows_everywhere(found, traces, run)
    sizer = Sizer(
        spec=known, layout=run.layout, conventions=conventions, activation_dtype=facts.dtype
    )
    tally = Adder(run, sizer, everywhere).tally(traces)
    missing = tuple(rank for rank in range(run.world_size or 1) if rank not in traces)
    workload = _workload(traces)
    schedule = Schedule(
        source="import",
        engine=name,
        model=spec,
        layout=run.layout,
        workload=workload or Workload(prompt_tokens=1, decode_tokens=1, batch=1),
        collectives=tuple(measured.row for measured in tally.rows),
    )
    evidence = Evidence(
        schedule=schedule,
        run=run,
        conventions=conventions,
        model_source=model_source,
        facts=facts,
        tally=tally,
        traces=traces,
        lacking=lacking,
        missing=missing,
        everywhere=everywhere,
    )
    verdict = judge(evidence)
    notes += [*more, *exchange_notes, *split_notes, *model_notes, *verdict.notes]
    notes += [*_partial_notes(evidence), *_time_notes(tally)]
    if workload is None and any(trace.busy_steps for trace in ranks):
        notes.append("served traffic: steps of unlike batches, no single prompt and decode length")
    return ImportedTrace(
        schedule=schedule,
        run=run,
        model_source=model_source,
        facts=facts,
        is_uniform=workload is not None,
        rows=tuple(tally.rows),
        control=(*tally.control, *_ignored(traces, run.layout)),
        unexplained=(*tally.unexplained, *_surplus(verdict)),
        conformance=verdict,
        clocks=tuple(clocks[rank] for rank in sorted(clocks))
        if len(clocks) > 1 and is_timed
        else (),
        notes=tuple(notes),
        traces=traces,
        gains=tuple(gains(traces, tuple(tally.rows), best)) if is_timed else (),
        replicas=tuple(replicas(traces, run)) if is_timed else (),
    )


def _check_distributed(traces: Mapping[int, RankTrace]) -> None:
    if any(trace.calls or (trace.world_size or 1) > 1 for trace in traces.values()):
        return
    path = next(iter(traces.values())).path
    raise FileFormatError(
        f"{path}: a trace of one process, without a collective; trace a run with two or more ranks"
    )


def _with_stage_layers(
    run: RunLayout, facts: ModelFacts, model: ModelSpec | None
) -> tuple[RunLayout, list[str]]:
    """Take over an uneven split of the layers where all stages show theirs."""
    total, layout = facts.num_layers, run.layout
    if (
        total is None
        or layout.pp == 1
        or layout.stage_layers
        or (model and model.num_layers != total)
    ):
        return run, []
    seen = tuple(facts.stage_layers[stage] for stage in range(layout.pp))
    if seen == tuple(map(len, layout.layers_of_stages(total))):
        return run, []
    note = f"the stages hold {', '.join(map(str, seen))} layers, not the even split"
    return replace(run, layout=replace(layout, stage_layers=seen)), [note]


def _model(given: GivenModel | None, facts: ModelFacts) -> tuple[ModelSpec, ModelSource, list[str]]:
    if given is not None and given.family is None:
        return given.spec, "given", []
    if given is not None:
        note = (
            f"family {given.family}: weft knows no schedule of it, only its dimensions are checked"
        )
        return given.spec, "dimensions", [note]
    candidates = facts.matching_models()
    if len(candidates) == 1:
        name = candidates[0].name
        return candidates[0], "matched", [f"model {name}: the one with the dimensions seen"]
    note = "the model's dimensions are those the collectives show; name the model to check them"
    return facts.stand_in(), "trace", [note]


def _partial_notes(evidence: Evidence) -> list[str]:
    traces = evidence.traces
    notes = [f"partial: {sentence}" for sentence in evidence.absent]
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


def _time_notes(tally: Tally) -> list[str]:
    """Which bandwidths are not told, and why."""
    return [
        f"no bandwidth of {m.row.count} x {m.row.op} of {m.row.message_bytes:,} bytes: its median "
        f"time of {m.row.duration_us.median:,.1f} us cannot be that of the transfer"
        for m in tally.rows
        if m.is_impossible and m.row.duration_us is not None
    ]


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


def _ignored(traces: Mapping[int, RankTrace], layout: Layout) -> list[OtherCalls]:
    reason = "waits for or groups earlier calls; moves no bytes of its own"
    kind = partial(OtherCalls, name="record_param_comms", phase="other", reason=reason)
    return [
        kind(op=name, stage=layout.stage_of(rank), count=count)
        for rank, trace in traces.items()
        for name, count in trace.ignored.items()
    ]


def _surplus(verdict: Conformance) -> list[OtherCalls]:
    """Rows that the engine's schedule does not have are unexplained."""
    if verdict.conforms is not False:
        return []
    surplus = (row.row for row in verdict.rows if row.verdict == "surplus")
    return [
        OtherCalls(
            op=row.op,
            name=f"{row.op} {list(row.input_shape or ())}",
            stage=row.stage,
            phase=row.phase,
            count=row.count,
            reason="the engine's schedule does not have it",
        )
        for row in surplus
    ]
