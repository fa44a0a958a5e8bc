"""torch's execution traces: alone, beside a profiler's trace, in every form that they have had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trace_builder import Batch, Run, write_run, write_trace
from weft.cli import main
from weft.errors import FileFormatError
from weft.importer.importing import import_traces
from weft.vocabulary.model_spec import ModelSpec

RUN = Run(
    layers=(2,), hidden=64, vocab=512, tp=2, pp=1, style="nccl-records",
    batches=(Batch(context_requests=1, context_tokens=6), Batch(decoding=1), Batch(decoding=1)),
)  # fmt: skip
SPEC = ModelSpec(
    name="made", num_layers=2, hidden_size=64, num_heads=16, num_kv_heads=16, head_dim=8,
    intermediate_size=256, vocab_size=512,
)  # fmt: skip
KINDS = {"BFloat16": "c10::BFloat16"}


def node(number: int, parent: int, name: str, form: str, **more: Any) -> dict[str, Any]:
    """A node as ExecutionTraceObserver writes it: flat before Chakra's format, nested since."""
    values, shapes, types = (more.get(key, []) for key in ("values", "shapes", "types"))
    outputs = more.get("outputs", [])
    if form == "1.0.1":
        return {"name": name, "id": number, "rf_id": number + 5, "parent": parent, "tid": 1,
                "inputs": values, "input_shapes": shapes, "input_types": types,
                "outputs": [], "output_shapes": outputs, "output_types": []}  # fmt: skip
    attrs = {"rf_id": number + 5, "tid": 1} | (more.get("attrs", {}) if form == "1.1.1" else {})
    return {"id": number, "name": name, "ctrl_deps": parent,
            "inputs": {"values": values, "shapes": shapes, "types": types},
            "outputs": {"values": [], "shapes": outputs, "types": []},
            "attrs": [{"name": n, "type": "", "value": v} for n, v in attrs.items()]}  # fmt: skip


def execution_trace(kineto: dict[str, Any], form: str, hidden: int = 64) -> dict[str, Any]:
    """What the observer would have written in the run of a made profiler's trace."""
    info = kineto["distributedInfo"]
    nodes = [node(1, 1, "[pytorch|profiler|execution_trace|process]", form)]
    if form != "1.0.1":
        groups = [g | {"group_size": len(g["ranks"])} for g in info["pg_config"]]
        groups[0]["ranks"] = []
        for group in groups:
            group["backend_config"] = "cuda:nccl"
        nodes.append(node(2, 1, "## process_group:init ##", form, values=[json.dumps(groups)]))
    spans: list[tuple[int, float]] = []
    for event in sorted(kineto["traceEvents"], key=lambda e: (e["ts"], -e["dur"])):
        args, number = event["args"], len(nodes) + 1
        spans = [(n, end) for n, end in spans if end >= event["ts"]] or [(1, 1e18)]
        if event["cat"] == "user_annotation":
            nodes.append(node(number, spans[-1][0], event["name"], form))
            spans.append((number, event["ts"] + event["dur"]))
        elif event["name"] == "record_param_comms":
            name, kind = args["Collective name"], KINDS[args["dtype"]]
            rows = args["In msg nelems"] // hidden
            shape = [rows, hidden] if name == "allreduce" else [args["In msg nelems"]]
            group: Any = ["3", "undefined"] if form != "1.0.1" else 94398426290464
            ranks = json.loads(args["Process Group Ranks"])
            tail = [ranks[0], 1, len(ranks)] if form != "1.0.1" else []
            nodes.append(node(
                number, spans[-1][0], "record_param_comms", form,
                values=[[[1, 2, 0, 3, 2, "cuda:0"]], 7, group, info["rank"], name, [], [], *tail],
                shapes=[[shape], [], [], [], [], [], [], *([] for _ in tail)],
                types=[f"GenericList[Tensor({kind})]", "Int", "Int", "Int", "String", "GenericList[]",
                       "GenericList[]", *("Int" for _ in tail)],
                outputs=[[[args["Out msg nelems"]]]],
                attrs={"out_msg_nelems": args["Out msg nelems"], "pg_desc": "undefined"},
            ))  # fmt: skip
            args["Record function id"] = number + 5
    return {"schema": form if form == "1.0.1" else f"{form}-chakra.0.0.4", "pid": 1, "nodes": nodes}


def both(folder: Path, form: str) -> tuple[list[Path], list[Path]]:
    """Profiler's traces and execution traces of the same ranks."""
    profiled = write_run(RUN, folder)
    executed = []
    for rank, path in enumerate(profiled):
        kineto = json.loads(path.read_bytes())
        executed.append(
            write_trace(execution_trace(kineto, form), folder / f"et_rank{rank}.json.gz")
        )
        write_trace(kineto, path)
    return profiled, executed


@pytest.mark.parametrize("form", ["1.0.1", "1.0.3", "1.1.1"])
def test_alone_it_is_judged_and_tells_no_times(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiled, executed = both(tmp_path, form)
    result = import_traces(executed, model=SPEC, engine="vllm")
    expected = {m.row.key: m.row.count for m in import_traces(profiled, model=SPEC).rows}
    assert result.conformance.conforms, result.conformance.reason
    if form != "1.0.1":
        assert {m.row.key: m.row.count for m in result.rows} == expected
    assert {m.row.provenance for m in result.rows if m.row.op == "all_reduce"} == {"shape"}
    document = result.to_dict()
    assert all(
        "duration_us" not in row and row["busbw_gb_s"] is None for row in document["collectives"]
    )
    assert not any(document[key] for key in ("gains", "timeline", "clocks", "waiting"))
    report = tmp_path / "report.html"
    assert main.run(["import", *map(str, executed), "--report", str(report)]) == 0
    assert "have no times" in capsys.readouterr().out


def test_a_lost_call_is_named_without_a_time(tmp_path: Path) -> None:
    kineto = json.loads(write_run(RUN, tmp_path)[0].read_bytes())
    document = execution_trace(kineto, "1.1.1")
    records = [n for n in document["nodes"] if n["name"] == "record_param_comms"]
    document["nodes"].remove(records[2])
    result = import_traces([write_trace(document, tmp_path / "et_rank0.json")], model=SPEC)
    assert result.conformance.conforms is False
    first = result.conformance.deviations[0]
    assert (first.step, first.op, first.time_us) == (0, "all_reduce", None)
    assert " us" not in first.text()


def test_a_pair_has_the_times_of_one_and_the_groups_and_shapes_of_the_other(tmp_path: Path) -> None:
    profiled, executed = both(tmp_path, "1.1.1")
    for path in profiled:
        kineto = json.loads(path.read_bytes())
        for event in kineto["traceEvents"]:
            for key in (
                "In msg nelems",
                "Out msg nelems",
                "dtype",
                "Group size",
                "Process Group Ranks",
            ):
                event["args"].pop(key, None)
        write_trace(kineto, path)
    poor = import_traces(profiled, model=SPEC)
    assert {m.row.provenance for m in poor.rows} != {"shape"}
    result = import_traces([*profiled, *executed], model=SPEC)
    assert result.conformance.conforms, result.conformance.reason
    assert {m.row.provenance for m in result.rows} == {"shape"}
    assert all(m.row.duration_us and m.row.transfer_us for m in result.rows)
    assert len(result.traces) == 2


def test_a_pair_of_unlike_runs_is_refused(tmp_path: Path) -> None:
    profiled, executed = both(tmp_path, "1.1.1")
    kineto = json.loads(profiled[0].read_bytes())
    for event in kineto["traceEvents"]:
        if event["args"].get("Collective name") == "allreduce":
            event["args"]["In msg nelems"] *= 3
    write_trace(kineto, profiled[0])
    with pytest.raises(FileFormatError, match="another run"):
        import_traces([profiled[0], executed[0]])
    with pytest.raises(FileFormatError, match="give both of every rank"):
        import_traces([profiled[1], executed[0], executed[1]])
    with pytest.raises(FileFormatError, match="without the profiler's trace of its rank"):
        import_traces([profiled[1], executed[0]])
    unnamed = executed[1].rename(tmp_path / "trace.json.gz")
    assert len(import_traces([profiled[1], unnamed]).traces) == 1


@pytest.mark.parametrize("text", [
    '{"schema": "1.1.1-chakra.0.0.4", "nodes": [{"id": 1, "na',
    '{"schema": "1.1.1-chakra.0.0.4", "pid": 3}',
    '{"schema": "1.1.1-chakra.0.0.4", "nodes": [{"id": "x", "name": 3}]}',
    '{"schema": "1.1.1-chakra.0.0.4", "nodes": [{"id": 1, "name": "record_param_comms", "inputs": {"values": 3}}]}',
    '{"schema": "1.1.1-chakra.0.0.4", "nodes": [{"id": 1, "name": "## process_group:init ##", "inputs": {"values": ["{"]}}]}',
    '{"schema": "1.1.1-chakra.0.0.4", "nodes": [{"id": 1, "name": "## process_group:init ##", "inputs": {"values": ["[{\\"pg_name\\": \\"0\\", \\"group_size\\": 1000000000000}]"]}}]}',
])  # fmt: skip
def test_a_broken_one_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "et_rank0.json"
    path.write_text(text)
    assert main.run(["import", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1


def test_a_record_without_values_is_a_call_of_unknown_kind(tmp_path: Path) -> None:
    document = {"schema": "1.1.1-chakra.0.0.4", "nodes": [
        {"id": 1, "name": "record_param_comms", "inputs": {"types": ["Int", "Int", "String"]}},
    ]}  # fmt: skip
    result = import_traces([write_trace(document, tmp_path / "et_rank0.json")])
    assert [calls.count for calls in result.unexplained] == [1]
