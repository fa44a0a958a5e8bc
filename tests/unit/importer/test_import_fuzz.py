"""Traces whose values are not what they should be: an import or a clear error, never a crash."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from trace_builder import Batch, Run, write_run, write_trace
from weft.errors import WeftError
from weft.importer.importing import import_traces
from weft.importer.perfetto import write_perfetto

TRACES = Path(__file__).parents[2] / "data" / "traces"
JUNK = st.sampled_from(
    [None, True, -1, 0, 10**18, 1.5, "", "x", "[0, 1]", "[7, ...]", [], [[]], [[-1, 2]], [[2], 3]]
) | st.dictionaries(st.sampled_from(["rank", "ranks", "x"]), st.integers(-2, 9), max_size=2)
NAMES = st.sampled_from(
    [
        "record_param_comms",
        "_C::shm_allreduce",
        "_C::shm_recv_tensor_list",
        "gloo:all_reduce",
        "c10d::allreduce_",
        "ncclDevKernel_SendRecv(x)",
        "execute_context_1(5)_generation_2(2)",
        "execute_context_0(0)_generation_0(0)",
        "step[MIXED bs=3]",
        "cudaGraphLaunch",
    ]
)


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(gzip.decompress((TRACES / name).read_bytes()))
    return document


SMALL = ["vllm_cpu_tp2pp2_rank2.json.gz", "gloo_rank0.json.gz", "vllm_cpu_pp2_mixed_rank0.json.gz"]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), name=st.sampled_from(SMALL))
def test_junk_among_the_values(data: st.DataObject, name: str) -> None:
    document = load(name)
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    for _ in range(data.draw(st.integers(1, 8))):
        event = data.draw(st.sampled_from(events))
        place = event if data.draw(st.booleans()) else event.setdefault("args", {})
        keys = [key for key in place if key != "args"] or ["Input Dims"]
        key = data.draw(st.sampled_from(keys))
        place[key] = data.draw(NAMES if key == "name" else JUNK)
    if data.draw(st.booleans()):
        information = document["distributedInfo"]
        information[data.draw(st.sampled_from(sorted(information)))] = data.draw(JUNK)
    check_import(document)


@settings(deadline=None, max_examples=60)
@given(
    events=st.lists(
        st.fixed_dictionaries(
            {
                "ph": st.just("X"),
                "cat": st.sampled_from(
                    ["cpu_op", "user_annotation", "kernel", "gpu_user_annotation", "cuda_runtime"]
                ),
                "name": NAMES,
                "ts": st.integers(0, 100),
                "dur": st.integers(-5, 50),
                "args": st.dictionaries(
                    st.sampled_from(
                        ["External id", "correlation", "Collective name", "In msg nelems", "dtype",
                         "Process Group Ranks", "Group size", "Input Dims", "Input type"]
                    ),
                    JUNK,
                    max_size=5,
                ),
            }
        ),
        max_size=25,
    ),
    world=st.sampled_from([None, 1, 2, 3, 4]),
)  # fmt: skip
def test_any_mix_of_events(events: list[dict[str, Any]], world: int | None) -> None:
    check_import({"distributedInfo": {"rank": 0, "world_size": world}, "traceEvents": events})


def check_import(document: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_trace(document, Path(folder) / "trace.json")
        try:
            result = import_traces([path])
        except WeftError:
            return
        json.dumps(result.to_dict(), allow_nan=False)
        write_perfetto(result, Path(folder) / "perfetto.json")


def test_a_trace_that_does_not_say_how_many_ranks_took_part(tmp_path: Path) -> None:
    batches = (Batch(context_requests=1, context_tokens=4), Batch(decoding=1))
    run = Run(layers=(2,), hidden=64, vocab=512, tp=2, pp=1, batches=batches, style="cuda-graphs")
    path = write_run(run, tmp_path)[0]
    document = json.loads(path.read_bytes())
    del document["distributedInfo"]
    events = document["traceEvents"]
    document["traceEvents"] = [e for e in events if e["cat"] in ("kernel", "user_annotation")]
    for event in document["traceEvents"]:
        event["args"] = {}
    write_trace(document, path)
    result = import_traces([path])
    assert "give the layout, e.g. tp2" in result.conformance.reason
    assert sum(row.row.count for row in result.rows) == 2 * (5 + 1)
    document = result.to_dict()
    assert {row["group_size"] for row in document["collectives"]} == {None}
    assert document["totals"]["volume_bytes"] is None
    assert document["layout"]["tp"] is None


def test_cuda_graphs_are_said_to_hide_padding(tmp_path: Path) -> None:
    batches = (Batch(context_requests=1, context_tokens=4), Batch(decoding=1))
    run = Run(layers=(2,), hidden=64, vocab=512, tp=2, pp=1, batches=batches, style="cuda-graphs")
    result = import_traces(write_run(run, tmp_path))
    assert any("CUDA graphs" in note for note in result.notes)
    all_reduces = [r.row for r in result.rows if r.row.op == "all_reduce"]
    assert {(row.provenance, row.message_bytes) for row in all_reduces} == {("metadata", None)}
