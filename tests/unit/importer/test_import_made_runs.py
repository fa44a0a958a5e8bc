"""Made-up runs of any layout, traffic and trace style: the import finds what was written."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_builder import Batch, RankWriter, Run, write_run, write_trace
from weft.importer.collect import read_rank
from weft.importer.importing import import_traces
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec


def spec_of(run: Run, **changes: Any) -> ModelSpec:
    sizes = {
        "name": "made",
        "num_layers": sum(run.layers),
        "hidden_size": run.hidden,
        "num_heads": 16,
        "num_kv_heads": 16,
        "head_dim": 8,
        "intermediate_size": 256,
        "vocab_size": run.vocab,
    }
    return ModelSpec(**(sizes | changes))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    tp, pp = draw(st.sampled_from([(2, 1), (4, 1), (1, 2), (1, 3), (2, 2), (4, 2)]))
    per_stage = draw(st.integers(1, 3))
    batches = st.builds(
        lambda requests, extra, decoding: Batch(
            context_requests=requests,
            context_tokens=requests + extra if requests else 0,
            decoding=decoding if requests or decoding else 1,
        ),
        st.integers(0, 3),
        st.integers(0, 40),
        st.integers(0, 5),
    )
    return Run(
        layers=(per_stage,) * pp,
        hidden=draw(st.sampled_from([64, 128])),
        vocab=draw(st.sampled_from([512, 1000])),
        tp=tp,
        pp=pp,
        batches=tuple(draw(st.lists(batches, min_size=1, max_size=6))),
        style=draw(
            st.sampled_from(["nccl-records", "custom-kernels", "cuda-graphs", "shared-memory"])
        ),
    )


@settings(max_examples=120, deadline=None)
@given(run=runs())
def test_any_run_conforms(run: Run) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_run(run, Path(folder))
        layout = Layout(tp=run.tp, pp=run.pp)
        result = import_traces(paths, model=spec_of(run))
    assert result.schedule.layout == layout
    assert result.conformance.conforms, result.conformance.reason
    assert not result.unexplained
    counted = sum(row.row.count for row in result.rows if row.row.op == "all_reduce")
    per_step = 2 * sum(run.layers) + 1 if run.tp > 1 else 0
    assert counted == per_step * len(run.batches)


@settings(max_examples=60, deadline=None)
@given(run=runs(), data=st.data())
def test_a_lost_call_on_one_rank_is_found(run: Run, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_run(run, Path(folder))
        path = data.draw(st.sampled_from(paths))
        trace = json.loads(path.read_bytes())
        names = ("_C::shm_a", "_C::shm_s", "record_param_comms", "c10d")
        if run.style == "cuda-graphs" and run.tp > 1:
            names = ("ncclDevKernel_AllReduce",)
        candidates = [
            e
            for e in trace["traceEvents"]
            if e["name"].startswith(names) and e["args"].get("External id") is None
        ] or [e for e in trace["traceEvents"] if e["name"] == "record_param_comms"]
        if not candidates:
            return
        _lose(trace, data.draw(st.sampled_from(candidates)), path)
        result = import_traces(paths, model=spec_of(run))
    assert result.conformance.conforms is False
    assert result.conformance.reason


def _lose(trace: dict[str, Any], lost: dict[str, Any], path: Path) -> None:
    """One call and its kernel are not in the trace."""
    identity = lost["args"].get("External id")
    trace["traceEvents"] = [
        e
        for e in trace["traceEvents"]
        if e is not lost
        and (identity is None or e["args"].get("External id") not in (identity, identity - 1))
    ]
    write_trace(trace, path)


@pytest.mark.parametrize("context_tokens", [1, 2])
def test_a_lost_receive_does_not_make_another_model(context_tokens: int, tmp_path: Path) -> None:
    """What is gathered after it looks like logits as wide as hidden states."""
    batch = Batch(context_requests=1, context_tokens=context_tokens, decoding=0)
    run = Run(
        layers=(1, 1), hidden=64, vocab=512, tp=2, pp=2, batches=(batch,), style="nccl-records"
    )
    paths = write_run(run, tmp_path)
    trace = json.loads(paths[2].read_bytes())
    lost = next(e for e in trace["traceEvents"] if e["args"].get("Collective name") == "recv")
    _lose(trace, lost, paths[2])
    assert import_traces(paths, model=spec_of(run)).conformance.conforms is False


@settings(max_examples=40, deadline=None)
@given(run=runs(), wrong=st.sampled_from(["num_layers", "hidden_size", "vocab_size"]))
def test_a_wrong_dimension_is_named(run: Run, wrong: str) -> None:
    true = spec_of(run)
    spec = replace(true, **{wrong: getattr(true, wrong) * 2})
    with tempfile.TemporaryDirectory() as folder:
        result = import_traces(write_run(run, Path(folder)), model=spec)
    shows = {
        "num_layers": run.tp > 1,
        "hidden_size": run.style != "cuda-graphs" or run.pp > 1,
        "vocab_size": run.tp > 1,
    }
    if shows[wrong]:
        assert result.conformance.conforms is False
        assert wrong in result.conformance.reason
    else:
        assert result.conformance.conforms


@settings(max_examples=30, deadline=None)
@given(run=runs())
def test_no_model_given_still_checks_the_structure(run: Run) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = import_traces(write_run(run, Path(folder)))
    assert result.model_source == "trace"
    assert result.conformance.conforms is None
    assert result.conformance.verdict in ("consistent with itself", "cannot tell")
    assert all(row.verdict == "equal" for row in result.conformance.rows)
    document = result.to_dict()
    assert document["model"]["num_layers"] == (sum(run.layers) if run.tp > 1 else None)


def small_run(**changes: Any) -> Run:
    base: dict[str, Any] = {
        "layers": (2, 2),
        "hidden": 64,
        "vocab": 512,
        "tp": 1,
        "pp": 2,
        "batches": (Batch(context_requests=1, context_tokens=6), Batch(decoding=1)),
        "style": "nccl-records",
    }
    return Run(**(base | changes))


def test_uneven_stages_are_taken_from_the_trace(tmp_path: Path) -> None:
    run = small_run(layers=(1, 3), tp=2)
    result = import_traces(write_run(run, tmp_path), model=spec_of(run))
    assert result.schedule.layout == Layout(tp=2, pp=2, stage_layers=(1, 3))
    assert result.conformance.conforms
    assert any("1, 3 layers" in note for note in result.notes)


def without_ids(self: RankWriter, batch: Batch) -> None:
    """Synchronous scheduling: ids go over the host."""


def int32_column(self: RankWriter, batch: Batch) -> None:
    """The first model runner: one column of int32 ids."""
    self.record(
        "broadcast", batch.sequences, batch.sequences, self.pp_ranks, "Broadcast", dtype="Int"
    )


@pytest.mark.parametrize(
    ("ids", "note"), [(without_ids, "asynchronous scheduling is off"), (int32_column, "int32")]
)
def test_how_ids_travel_is_a_setting_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: Any, note: str
) -> None:
    monkeypatch.setattr(RankWriter, "sampled_ids", ids)
    run = small_run(batches=(Batch(context_requests=3, context_tokens=9), Batch(decoding=3)))
    result = import_traces(write_run(run, tmp_path), model=spec_of(run))
    assert result.conformance.conforms, result.conformance.reason
    assert any(note in text for text in result.notes)


def test_a_chunk_of_a_prompt_may_send_no_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RankWriter.sampled_ids
    chunk = Batch(context_requests=1, context_tokens=4)

    def only_when_done(self: RankWriter, batch: Batch) -> None:
        if batch != chunk:
            whole(self, batch)

    monkeypatch.setattr(RankWriter, "sampled_ids", only_when_done)
    rest = Batch(context_requests=1, context_tokens=2)
    run = small_run(batches=(chunk, rest, Batch(decoding=1)))
    result = import_traces(write_run(run, tmp_path), model=spec_of(run))
    assert result.conformance.conforms, result.conformance.reason


def test_a_call_beside_the_schedule_is_unexplained(tmp_path: Path) -> None:
    run = small_run(tp=2, pp=1, layers=(2,))
    writer = RankWriter(0, run)
    for batch in run.batches:
        writer.step(batch)
        writer.all_reduce(999)
    path = write_trace(writer.trace(), tmp_path / "rank0.json.gz")
    result = import_traces([path], model=spec_of(run))
    assert result.conformance.conforms is False
    assert [(c.op, c.count) for c in result.unexplained] == [("all_reduce", 1)] * 2


@pytest.mark.parametrize(
    ("labels", "engine"),
    [
        (("step[EXTEND bs=1 toks=6]", "step[DECODE bs=1]"), "sglang"),
        (
            (
                "[Executor] _forward_step 1: 1 ctx reqs, 6 ctx tokens, 0 gen reqs",
                "[Executor] _forward_step 2: 0 ctx reqs, 0 ctx tokens, 1 gen reqs",
            ),
            "trtllm",
        ),
    ],
)
@pytest.mark.parametrize("chosen", [True, False])
def test_other_engines_labels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    labels: tuple[str, str],
    engine: str,
    chosen: bool,
) -> None:
    def label(self: RankWriter, batch: Batch, start: float, end: float) -> None:
        if batch.tokens:
            name = labels[0] if batch.context_requests else labels[1]
            self.emit("user_annotation", name, start, end - start)

    monkeypatch.setattr(RankWriter, "label", label)
    run = small_run(tp=4, pp=1, layers=(2,), style="custom-kernels")
    paths = write_run(run, tmp_path)
    result = import_traces(paths, model=spec_of(run), engine=engine if chosen else "auto")
    assert result.schedule.engine == engine
    assert result.conformance.conforms, result.conformance.reason
    assert result.schedule.workload.prompt_tokens == 6


def test_a_send_of_gloo_begins_with_its_operator(tmp_path: Path) -> None:
    """The bytes leave before gloo's annotation begins: the receiver may be done by then."""

    def event(name: str, category: str, start: float, duration: float) -> dict[str, Any]:
        args = {"Input Dims": [[4, 8]], "Input type": ["float"]}
        return {"ph": "X", "cat": category, "name": name, "tid": 1, "ts": start, "dur": duration,
                "args": args}  # fmt: skip

    events = [
        event("c10d::send", "cpu_op", 100, 60),
        event("gloo:send", "user_annotation", 150, 20),
    ]
    (call,) = read_rank(write_trace({"traceEvents": events}, tmp_path / "rank0.json")).calls
    assert (call.start_us, call.end_us, call.source) == (100, 170, "gloo")
