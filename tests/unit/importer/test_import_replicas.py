"""Replicas that share their experts: the exchange is judged, and the waiting between them told."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica_traces import Coordination, Library, Replicas, write_schedule
from trace_builder import Batch, write_trace
from weft.cli import main
from weft.importer.importing import import_traces
from weft.importer.rows import COORDINATION_RULE
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.workload import Workload

RECORDED = Path(__file__).parents[2] / "data" / "traces" / "replicas"
PREFILL, DECODE = Batch(context_requests=1, context_tokens=6), Batch(decoding=2)


def replicas(**changes: Any) -> Replicas:
    base: dict[str, Any] = {
        "layers": 2, "hidden": 64, "vocab": 512, "chosen": 2, "tp": 1, "dp": 2,
        "rounds": ((PREFILL, PREFILL), (DECODE, DECODE), (DECODE, DECODE)),
    }  # fmt: skip
    return Replicas(**(base | changes))


def spec_of(run: Replicas, **changes: Any) -> ModelSpec:
    sizes: dict[str, Any] = {
        "name": "experts", "num_layers": run.layers, "hidden_size": run.hidden, "num_heads": 16,
        "num_kv_heads": 16, "head_dim": 8, "intermediate_size": 256, "vocab_size": run.vocab,
        "num_experts": 16, "experts_per_token": run.chosen, "expert_intermediate_size": 32,
    }  # fmt: skip
    return ModelSpec(**(sizes | changes))


@st.composite
def runs(draw: st.DrawFn) -> Replicas:
    dp = draw(st.sampled_from([2, 3]))
    batch = st.one_of(
        st.none(),
        st.builds(lambda n: Batch(decoding=n), st.integers(1, 5)),
        st.builds(lambda n: Batch(context_requests=1, context_tokens=n), st.integers(1, 20)),
    )
    rounds = draw(st.lists(st.tuples(*[batch] * dp).filter(any), min_size=1, max_size=6))
    first = (Batch(context_requests=1, context_tokens=4),) * dp
    return replicas(
        layers=draw(st.integers(1, 3)),
        tp=draw(st.sampled_from([1, 2])),
        dp=dp,
        rounds=(first, *rounds),
        library=draw(st.sampled_from(["nccl", "deepep", "deepep_low_latency", "records"])),
        coordination=draw(st.sampled_from(["gloo", "gloo without shapes", "nccl"])),
    )


@settings(max_examples=80, deadline=None)
@given(run=runs())
def test_any_replicas_conform(run: Replicas) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = import_traces(run.write(Path(folder)), model=spec_of(run))
    assert result.schedule.layout == Layout(tp=run.tp, dp=run.dp, ep=run.tp * run.dp)
    assert result.conformance.conforms, result.conformance.reason
    assert not result.unexplained
    idle = sum(batch is None for batches in run.rounds for batch in batches)
    assert sum(replica["idle_steps"] for replica in result.to_dict()["replicas"]) == idle


Window = tuple[float, float]
Recorded = tuple[Replicas, list[Path], dict[Path, float], Window]
"""A run, the file and the clock of every rank, and the time that all profilers recorded."""


def cut(path: Path, window: Window, clock: float = 0.0) -> None:
    """Leave what a profiler keeps that ran in ``window`` of a clock that is ``clock`` ahead."""
    trace = json.loads(path.read_bytes())
    trace["traceEvents"] = [
        event | {"ts": event["ts"] + clock}
        for event in trace["traceEvents"]
        if event["name"] == "void gemm()"
        or (window[0] <= event["ts"] and event["ts"] + event["dur"] <= window[1])
    ]
    write_trace(trace, path)


def labels(path: Path) -> list[Window]:
    events = json.loads(path.read_bytes())["traceEvents"]
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"].startswith("execute_")]
    return sorted(spans)


@st.composite
def cut_runs(draw: st.DrawFn, folder: Path) -> Recorded:
    """A run whose replicas were recorded in windows of their own, on clocks of their own."""
    run = draw(runs())
    noise = draw(st.none() | st.randoms(use_true_random=False))
    run.compute_us = (lambda *_: noise.uniform(20, 80)) if noise else run.compute_us
    paths, windows, clocks = run.write(folder), [(-1.0, 1e9)], {}
    end = max(writer.now for writer in run.ranks)
    for replica in range(run.dp):
        ranks = run.of_replica(replica)
        spans = labels(paths[ranks[0]])
        times = [1e6 - 1, end, *(start - 1 for start, _ in spans)]
        moments = st.sampled_from(times) | st.floats(1e6 - 1, end)
        start, stop = sorted([draw(moments), draw(moments)])
        windows.append((start, stop) if draw(st.booleans()) else windows[0])
        clock = draw(st.sampled_from([0.0, 12_345.5, -500.25]))
        for rank in ranks:
            cut(paths[rank], windows[-1], clock)
            clocks[paths[rank]] = clock
    starts, stops = zip(*windows, strict=True)
    return run, paths, clocks, (max(starts), min(stops))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_profilers_that_start_and_stop_at_any_time(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, paths, *_ = data.draw(cut_runs(Path(folder)))
        result = import_traces(paths, model=spec_of(run), layout=layout_of(run))
    assert result.conformance.conforms is not False, result.conformance.reason


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("library", ["nccl", "records", "deepep"])
def test_a_profiler_that_stops_after_any_call(library: Library, tp: int, tmp_path: Path) -> None:
    """What is left of the last step has no label, and is no fault of the step before."""
    run = replicas(library=library, tp=tp, rounds=((PREFILL, DECODE), (DECODE, PREFILL)))
    paths = run.write(tmp_path)
    whole = [path.read_bytes() for path in paths]
    begun = labels(paths[0])[-1][0]
    events = json.loads(whole[0])["traceEvents"]
    for stop in sorted({event["ts"] + event["dur"] for event in events if event["ts"] >= begun}):
        for path, content in zip(paths, whole, strict=True):
            path.write_bytes(content)
        for rank in run.of_replica(0):
            cut(paths[rank], (-1.0, stop))
        result = import_traces(paths, model=spec_of(run))
        assert result.conformance.conforms is not False, (stop, result.conformance.reason)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_lost_kernel_of_the_exchange_is_found(data: st.DataObject) -> None:
    """In a step that the profilers of all replicas recorded."""
    with tempfile.TemporaryDirectory() as folder:
        run, paths, clocks, (start, end) = data.draw(cut_runs(Path(folder)))
        path = data.draw(st.sampled_from(paths))
        trace = json.loads(path.read_bytes())
        events = trace["traceEvents"]
        clock = clocks[path]
        spans = [(a, b) for a, b in labels(path) if start <= a - clock and b - clock <= end]
        names = ("dispatch", "combine", "ReduceScatter", "_Reduce_")
        lost = data.draw(st.sampled_from([
            e for e in events
            if e["cat"] == "kernel" and any(name in e["name"] for name in names)
            and "notify" not in e["name"] and "layout" not in e["name"]
            and any(a <= e["ts"] <= b for a, b in spans)
        ] or [None]))  # fmt: skip
        if lost is None:
            return
        identity = lost["args"].get("External id")
        trace["traceEvents"] = [
            e for e in events
            if e is not lost and (identity is None or e["args"].get("External id") != identity)
        ]  # fmt: skip
        write_trace(trace, path)
        result = import_traces(paths, model=spec_of(run), layout=layout_of(run))
    assert result.conformance.conforms is False
    assert result.conformance.deviations[0].rank == paths.index(path)


def layout_of(run: Replicas) -> Layout:
    return Layout(tp=run.tp, dp=run.dp)


@pytest.mark.parametrize("mode", ["eager", "graphs"])
def test_a_recorded_vllm_conforms(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM 0.25.1 on two H200; with graphs, without shapes, and one profiler started a step late."""
    traces = sorted(map(str, RECORDED.glob(f"{mode}_rank*.json.gz")))
    assert (
        main.run(["import", *traces, "--model", str(RECORDED / "model"), "--format", "json"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document["layout"]["dp"] == document["layout"]["ep"] == 2
    assert document["conformance"]["conforms"] is True, document["conformance"]["explanation"]
    assert not document["unexplained"]
    assert all(row["op"] != "all_reduce" for row in document["collectives"])
    agreed = [c for c in document["control"] if c["reason"] == COORDINATION_RULE]
    assert sum(c["count"] for c in agreed) >= 15
    assert all(row["input_shape"] and row["wait_us"] for row in document["collectives"])
    assert [replica["waits_for"] for replica in document["replicas"]] == [1, 0]
    ends: dict[int, list[Window]] = {0: [], 1: []}
    for event in document["timeline"]:
        ends[event["rank"]].append((event["start_us"], event["end_us"]))
    (first, second) = (sorted(spans) for spans in ends.values())
    assert first[0][0] <= second[-1][1], "the two did this step together"
    assert second[0][0] <= first[-1][1], "the two did this step together"
    assert all(replica["wait_us"] > 1e4 for replica in document["replicas"])


@pytest.mark.parametrize("coordination", ["gloo", "gloo without shapes", "nccl"])
@pytest.mark.parametrize("library", ["nccl", "records"])
@pytest.mark.parametrize(("late", "early"), [(1, 0), (2, 0), (1, 1), (0, 2), (2, 1)])
def test_waiting_where_profilers_start_and_stop_apart(
    late: int, early: int, library: Library, coordination: Coordination, tmp_path: Path
) -> None:
    """Replica 1 begins ``late`` steps after the other, which stops ``early`` steps before it."""
    noise = random.Random(late)
    run = replicas(
        rounds=(*((PREFILL, None), (DECODE, None))[:late], (DECODE, DECODE), (PREFILL, DECODE),
                (DECODE, None), (DECODE, PREFILL), *((DECODE, DECODE),) * early),
        compute_us=lambda *_: noise.uniform(20, 80),
        coordination=coordination,
        library=library,
    )  # fmt: skip
    paths = run.write(tmp_path)
    whole = import_traces(paths, model=spec_of(run))
    begun, stopped = labels(paths[1])[0][0] - 1, ([*labels(paths[0]), (1e9, 1e9)][-early - 1 or -1])
    cut(paths[1], (begun, 1e9))
    cut(paths[0], (-1.0, stopped[0] - 1 if early else 1e9))
    result = import_traces(paths, model=spec_of(run))
    assert result.conformance.conforms is not False, result.conformance.reason
    waits = [
        {call.start_us: call.wait_us for call in imported.traces[1].calls if call.step is not None}
        for imported in (whole, result)
    ]
    end = stopped[0] if early else 1e9
    known = {time: wait for time, wait in waits[1].items() if time < end}
    assert known
    assert known == {time: waits[0][time] for time in known}
    assert None not in known.values()


@pytest.mark.parametrize("library", ["nccl", "records"])
def test_the_rows_of_all_replicas_are_counted(tmp_path: Path, library: Library) -> None:
    run = replicas(
        tp=2, rounds=((PREFILL, Batch(context_requests=1, context_tokens=3)),), library=library
    )
    result = import_traces(run.write(tmp_path), model=spec_of(run))
    assert result.conformance.conforms, result.conformance.reason
    rows = [m.row for m in result.rows if m.row.group == "ep"]
    gathered = {(r.input_shape, r.output_shape) for r in rows if r.op == "all_gather" and r.dtype == "bfloat16"}  # fmt: skip
    assert gathered == {((3, 64), (10, 64)), ((2, 64), (10, 64))}
    assert {r.count for r in rows} == {2}
    assert {r.provenance for r in rows} == {"model" if library == "nccl" else "metadata"}


@pytest.mark.parametrize(
    ("engine", "layout", "own"),
    [
        ("weft", Layout(tp=2, ep=2), False),
        ("weft", Layout(dp=2, ep=2), False),
        ("weft", Layout(tp=2, dp=2, ep=4), False),
        ("weft", Layout(tp=2, ep=2), True),
        ("weft", Layout(tp=2, dp=2, ep=4), True),
        ("vllm", Layout(dp=4, ep=4), False),
        ("vllm", Layout(tp=2, dp=2, ep=4), False),
    ],
)
def test_dry_runs_written_as_traces_conform(
    engine: str, layout: Layout, tmp_path: Path, *, own: bool
) -> None:
    """The model code under a fake process group is the other side here, not the closed form."""
    from weft.tracing.dry_run import dry_run

    spec = spec_of(replicas(), family="qwen3_moe")
    load = Workload(prompt_tokens=5, decode_tokens=3, batch=3 * layout.dp)
    schedule = dry_run(spec, layout, load, engine)
    paths = write_schedule(schedule, tmp_path, own_exchange=own)
    result = import_traces(paths, model=spec, engine=engine, layout=layout)
    assert result.conformance.conforms, result.conformance.reason
    found = {m.row.key: m.row.count for m in result.rows}
    assert found == {row.key: row.count for row in schedule.collectives}
    rooms = {m.row.bound for m in result.rows if m.row.op == "all_to_all"}
    assert rooms == ({"upper"} if engine == "weft" else set())
    assert not result.conformance.differences


@pytest.mark.parametrize("library", ["nccl", "records", "deepep", "deepep_low_latency"])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_another_number_of_layers_does_not_fit(
    library: Library, layers: int, tmp_path: Path
) -> None:
    """Half the layers with every kernel launched twice must not do."""
    run = replicas(library=library)
    result = import_traces(run.write(tmp_path), model=spec_of(run, num_layers=layers))
    assert result.conformance.conforms is False


def test_without_a_model_the_experts_are_not_judged(tmp_path: Path) -> None:
    result = import_traces(replicas().write(tmp_path))
    assert result.conformance.conforms is None
    assert "model" in result.conformance.reason
    assert any("ep2" in note for note in result.notes)


def test_a_replica_that_is_missing(tmp_path: Path) -> None:
    run = replicas()
    result = import_traces(run.write(tmp_path)[:1], model=spec_of(run))
    assert result.conformance.verdict == "cannot tell", result.conformance.reason
    assert "as expected" in result.conformance.reason


def test_an_engine_of_which_weft_does_not_know_the_exchange(tmp_path: Path) -> None:
    run = replicas(library="deepep")
    result = import_traces(run.write(tmp_path), model=spec_of(run), engine="trtllm")
    assert result.conformance.verdict == "not checked"
    assert "trtllm" in result.conformance.reason


def test_who_waits_for_the_slowest_replica(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Replica 1 computes three times as long, so the ranks of replica 0 wait for it."""
    run = replicas(tp=2, compute_us=lambda rank, _: 90.0 if rank >= 2 else 30.0)
    paths = run.write(tmp_path)
    result = import_traces(paths, model=spec_of(run))
    found = result.to_dict()["replicas"]
    for replica in found:
        ranks = run.of_replica(replica["replica"])
        waited = sum(run.waited_us[rank] for rank in ranks) / len(ranks)
        assert replica["wait_us"] == pytest.approx(waited, abs=0.1)
    assert found[0]["wait_us"] > 300 > found[1]["wait_us"]
    assert found[0]["waits_for"] == 1
    assert main.run(["import", *map(str, paths)]) == 0
    output = capsys.readouterr().out
    assert "replica 0: 3 steps, 10 tokens" in output
    waited = f"waited {found[0]['wait_us'] / 1e3:.3g} ms for other replicas, most for replica 1"
    assert waited in output
    report = tmp_path / "report.html"
    assert main.run(["import", *map(str, paths), "--report", str(report)]) == 0
    assert "Replicas" in report.read_text()
