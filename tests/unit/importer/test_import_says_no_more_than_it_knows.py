"""What an import must not claim: each of these was once accepted, lost or called wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trace_builder import Batch, RankWriter, Run, write_run, write_trace
from weft.cli import main
from weft.errors import FileFormatError, LayoutError
from weft.importer.imported import ImportedTrace
from weft.importer.importing import import_traces
from weft.importer.inputs import given_model
from weft.importer.sources import Kind, classify
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.model_spec import ModelSpec

TRACES = Path(__file__).parents[2] / "data" / "traces"
BATCHES = (Batch(context_requests=1, context_tokens=8), *[Batch(decoding=1)] * 5)


def run_of(**changes: Any) -> Run:
    base: dict[str, Any] = {
        "layers": (3,), "hidden": 64, "vocab": 512, "tp": 2, "pp": 1,
        "batches": BATCHES, "style": "nccl-records",
    }  # fmt: skip
    return Run(**(base | changes))


def spec_of(run: Run) -> ModelSpec:
    return ModelSpec(
        name="made", num_layers=sum(run.layers), hidden_size=run.hidden, num_heads=8,
        num_kv_heads=8, head_dim=8, intermediate_size=128, vocab_size=run.vocab,
    )  # fmt: skip


def change(path: Path, edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    document = json.loads(path.read_bytes())
    document["traceEvents"] = edit(document["traceEvents"])
    write_trace(document, path)


def kernel(name: str, start: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "kernel", "name": name, "tid": 7, "ts": start, "dur": 4, "args": args}


def moved(events: list[dict[str, Any]], by_us: Callable[[float], float]) -> list[dict[str, Any]]:
    return [event | {"ts": event["ts"] + by_us(event["ts"])} for event in events]


# --- 1: ranks of different runs


def test_ranks_whose_clocks_contradict_each_other_are_of_different_runs(tmp_path: Path) -> None:
    paths = write_run(run_of(), tmp_path)
    half = 1_000_700.0
    change(paths[1], lambda events: moved(events, lambda t: 90e6 if t > half else 0.0))
    with pytest.raises(FileFormatError, match="ranks of different runs, or a clock that was set"):
        import_traces(paths)


def test_ranks_of_different_models_are_of_different_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = write_run(run_of(), tmp_path / "a")[0]
    second = write_run(run_of(hidden=128), tmp_path / "b")[1]
    with pytest.raises(FileFormatError, match=r"different runs \(hidden_size 64 and 128\)"):
        import_traces([first, second])


def test_stages_minutes_apart_are_of_different_runs(tmp_path: Path) -> None:
    paths = write_run(run_of(tp=1, pp=2, layers=(2, 2), style="shared-memory"), tmp_path)
    change(paths[1], lambda events: moved(events, lambda _: -180e6))
    with pytest.raises(FileFormatError, match="their clocks are 180 s apart"):
        import_traces(paths)


def test_a_stage_with_fewer_steps_is_named_and_not_judged(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    run = run_of(tp=1, pp=2, layers=(2, 2), style="shared-memory")
    first = write_run(run, tmp_path / "a")[0]
    second = write_run(replace(run, batches=BATCHES[:4]), tmp_path / "b")[1]
    result = import_traces([first, second], model=spec_of(run))
    assert result.conformance.verdict == "cannot tell"
    assert "rank1.json lacks 2 of the 6 steps of rank0.json" in result.conformance.reason


# --- 2: clocks that are open on one side, and clocks that drift


def test_pipeline_times_on_an_open_clock_are_not_told(tmp_path: Path) -> None:
    paths = write_run(run_of(tp=1, pp=2, layers=(2, 2), style="shared-memory"), tmp_path)
    change(paths[1], lambda events: moved(events, lambda _: 3000.0))
    result = import_traces(paths)
    clock = result.clocks[1]
    assert clock.low_us is None or clock.high_us is None
    for measured in result.rows:
        assert (measured.row.wait_us, measured.row.transfer_us) == (None, None)
        assert measured.row.bound == "upper"


def test_drift_is_estimated_and_corrected(tmp_path: Path) -> None:
    paths = write_run(run_of(batches=BATCHES[:1] + BATCHES[1:] * 200), tmp_path)
    change(paths[1], lambda events: moved(events, lambda t: 300e-6 * (t - 1e6)))
    clock = import_traces(paths).clocks[1]
    assert clock.is_consistent
    assert clock.drift_ppm == pytest.approx(300, abs=60)
    change(paths[1], lambda events: moved(events, lambda t: 1e-2 * (t - 1e6)))
    with pytest.raises(FileFormatError, match="different runs"):
        import_traces(paths)


# --- 3: traffic that the schedule does not have

LIBRARIES = {
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "all_reduce",
    "ncclSymkDevKernel_AllReduce_AGxLL_R_sum_bf16(ncclSymkDevWorkArgs const*)": "all_reduce",
    "ncclDevKernel_Generic_4(ncclDevKernelArgsStorage<4096ul>)": "unknown",
    "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)": "unknown",
    "ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(x)": "reduce_scatter",
    "void deep_ep::internode_ll::dispatch<true, 3, 7168>(void*)": "all_to_all",
    "void deep_ep::intranode::combine<__nv_bfloat16, 8, 768, 4096>(x)": "all_to_all",
    "void deep_ep::intranode::notify_dispatch<8>(int const*)": "signals",
    "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<3>": "all_reduce",
    "void vllm::cross_device_reduce_2stage<__nv_bfloat16, 8>(x)": "all_reduce",
    "quickreduce::allreduce_prototype_twoshot<__half>": "all_reduce",
    "void aiter::cross_device_reduce_1stage_naive<__hip_bfloat16, 8>(x)": "all_reduce",
    "void (anonymous namespace)::multimem_all_reduce_kernel<c10::BFloat16, 16>(x)": "all_reduce",
    "void mscclpp::collective::allreduceAllPairs<int>": "all_reduce",
    "void pplx::dispatchKernel<8>": "all_to_all",
    "nvshmemi_transfer_kernel": "unknown",
    "tensorrt_llm::kernels::moe_comm::moeA2ADispatchKernel<1>": "all_to_all",
    "two_shot": "all_reduce",
    "hierarchical_direct": "all_reduce",
    "all_reduce_residual_rms_norm": "all_reduce",
}


@pytest.mark.parametrize(("name", "operation"), LIBRARIES.items())
def test_every_librarys_kernels_are_communication(name: str, operation: str) -> None:
    kind, traffic = classify("kernel", name)
    assert kind is Kind.KERNEL
    assert traffic is not None
    assert traffic.operation == operation


@pytest.mark.parametrize(
    "name",
    ["void at::native::reduce_kernel<512, 1>", "triton_red_fused__to_copy_all_reduce_mean_3",
     "void cutlass::Kernel2<gemm>", "void deep_ep::layout::get_dispatch_layout<256>(x)"],
)  # fmt: skip
def test_compute_is_not_communication(name: str) -> None:
    assert classify("kernel", name)[0] is Kind.COMPUTE


def test_fused_operators_are_named() -> None:
    _, traffic = classify("cpu_op", "symm_mem::fused_matmul_reduce_scatter")
    assert traffic is not None
    assert (traffic.operation, traffic.fused) == ("reduce_scatter", "matmul")
    _, traffic = classify("cpu_op", "symm_mem::fused_all_gather_matmul")
    assert traffic is not None
    assert (traffic.operation, traffic.fused) == ("all_gather", "matmul")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ncclDevKernel_SendRecv(x)", "communication; its name does not tell"),
        ("void deep_ep::intranode::dispatch<8, 768, 8192>(x)", "all_to_all"),
        ("void deep_ep::intranode::combine<8>(x)", "all_to_all"),
    ],
)
def test_traffic_beside_the_schedule_blocks_the_verdict(
    tmp_path: Path, name: str, words: str
) -> None:
    run = run_of()
    paths = write_run(run, tmp_path)
    for path in paths:
        extra = [kernel(name, 1_000_100.0 + number) for number in range(6)]
        change(path, lambda events, extra=extra: [*events, *extra])  # type: ignore[misc]
    result = import_traces(paths, model=spec_of(run))
    assert result.conformance.conforms is False
    assert words in result.conformance.reason
    assert sum(calls.count for calls in result.unexplained) == 6


def test_deepep_is_an_all_to_all_of_unknown_size(tmp_path: Path) -> None:
    paths = write_run(run_of(), tmp_path)
    name = "void deep_ep::intranode::dispatch<8, 768, 8192>(x)"
    for path in paths:
        change(path, lambda events: [*events, kernel(name, 1_000_100.0)])
    rows = import_traces(paths).to_dict()["collectives"]
    (row,) = [row for row in rows if row["op"] == "all_to_all"]
    assert (row["variant"], row["message_bytes"], row["volume_bytes"]) == (
        "deepep_dispatch",
        None,
        None,
    )


# --- 4: without a model nothing can conform


def test_two_missing_all_reduces_of_every_step_do_not_conform_without_a_model(
    tmp_path: Path,
) -> None:
    run = run_of(layers=(3,))
    paths = write_run(replace(run, layers=(2,)), tmp_path)
    blind = import_traces(paths)
    assert blind.conformance.conforms is None
    assert blind.conformance.verdict == "consistent with itself"
    assert "name the model to check it" in blind.conformance.reason
    assert import_traces(paths, model=spec_of(run)).conformance.conforms is False


# --- 5: bytes


def test_every_tensor_of_a_coalesced_call_counts(tmp_path: Path) -> None:
    event = {
        "ph": "X", "cat": "cpu_op", "name": "c10d::allreduce_coalesced_", "ts": 1, "dur": 5, "tid": 1,
        "args": {"Input Dims": [[[4, 8], [16]], []], "Input type": ["TensorList", ""]},
    }  # fmt: skip
    path = write_trace(
        {"distributedInfo": {"rank": 0, "world_size": 2}, "traceEvents": [event]},
        tmp_path / "a.json",
    )
    rows = import_traces([path]).rows
    assert sorted(row.row.input_shape or () for row in rows) == [(4, 8), (16,)]


@pytest.mark.parametrize("operation", ["reduce", "scatter"])
def test_reduce_and_scatter_are_rows(tmp_path: Path, operation: str) -> None:
    args = {"Collective name": operation, "In msg nelems": 64, "Out msg nelems": 64,
            "dtype": "Float", "Group size": 2, "Process Group Ranks": "[0, 1]"}  # fmt: skip
    event = {
        "ph": "X",
        "cat": "cpu_op",
        "name": "record_param_comms",
        "ts": 1,
        "dur": 5,
        "args": args,
    }
    path = write_trace(
        {"distributedInfo": {"rank": 0, "world_size": 2}, "traceEvents": [event]},
        tmp_path / "a.json",
    )
    document = import_traces([path]).to_dict()
    assert [(row["op"], row["message_bytes"]) for row in document["collectives"]] == [
        (operation, 256)
    ]
    assert document["totals"]["volume_bytes"] == 256


def test_unknown_sizes_are_null_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [kernel("ncclDevKernel_AllReduce_Sum_bf16(x)", float(n)) for n in range(3)]
    path = write_trace(
        {"distributedInfo": {"rank": 0, "world_size": 2}, "traceEvents": events},
        tmp_path / "a.json",
    )
    document = import_traces([path]).to_dict()
    assert document["totals"]["volume_bytes"] is None
    assert document["totals"]["unknown_calls"] == 3
    assert document["collectives"][0]["provenance"] != "model"
    assert main.run(["import", str(path), "--format", "csv"]) == 0
    assert ",model," not in capsys.readouterr().out


# --- 6: false alarms


def test_replicas_that_agree_on_their_tokens_are_no_fault(tmp_path: Path) -> None:
    run = run_of(tp=2)
    paths = write_run(run, tmp_path)
    whole = []
    for rank in range(4):
        document = json.loads(paths[rank % 2].read_bytes())
        document["distributedInfo"] |= {"rank": rank, "world_size": 4}
        group = str([2 * (rank // 2), 2 * (rank // 2) + 1])
        for event in document["traceEvents"]:
            if "Process Group Ranks" in event["args"]:
                event["args"]["Process Group Ranks"] = group
        for number in range(6):
            args = {"Collective name": "allreduce", "In msg nelems": 8, "Out msg nelems": 8,
                    "dtype": "Int", "Group size": 2, "Process Group Ranks": str([rank % 2, rank % 2 + 2])}  # fmt: skip
            event = {"ph": "X", "cat": "cpu_op", "name": "record_param_comms"}
            document["traceEvents"].append(
                event | {"ts": 1e6 + number * 200, "dur": 3, "args": args}
            )
        document["distributedInfo"]["pg_config"] = []
        whole.append(write_trace(document, tmp_path / f"dp_rank{rank}.json"))
    result = import_traces(whole, model=spec_of(run), layout=Layout(tp=2, dp=2))
    assert result.conformance.conforms, result.conformance.reason
    assert {c.reason for c in result.control} == {
        "replicas agree on the tokens and graphs of the step"
    }


def test_prompt_logprobs_are_no_fault() -> None:
    result = import_traces(sorted(TRACES.glob("vllm_cpu_logprobs_rank*.json.gz")))
    assert result.conformance.verdict == "consistent with itself", result.conformance.reason
    assert any("prompt_logprobs" in note for note in result.notes)
    assert not result.unexplained


@pytest.mark.parametrize("rank", range(4))
def test_one_rank_of_four_cannot_tell_and_its_totals_are_its_table(rank: int) -> None:
    result = import_traces([TRACES / f"vllm_cpu_tp2pp2_rank{rank}.json.gz"])
    assert result.conformance.verdict == "cannot tell", result.conformance.reason
    document = result.to_dict()
    by_op: dict[str, float] = {}
    for row in document["collectives"]:
        if row["op"] != "recv" and row["volume_bytes"] is not None:
            by_op[row["op"]] = by_op.get(row["op"], 0) + row["volume_bytes"]
    assert document["totals"]["by_op"] == pytest.approx(by_op)


# --- 7: any directory with a config.json


def test_a_family_that_weft_does_not_run_is_checked_by_its_dimensions(tmp_path: Path) -> None:
    run = run_of()
    config = {
        "model_type": "nemotron_h",
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "vocab_size": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    paths = write_run(run, tmp_path)
    result = import_traces(paths, model=given_model(str(tmp_path)))
    assert result.rows
    assert result.conformance.conforms, result.conformance.reason
    assert any("family nemotron_h" in note for note in result.notes)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    other = import_traces(paths, model=given_model(str(tmp_path)))
    assert other.conformance.verdict == "cannot tell"
    assert "num_layers: the trace shows 3" in other.conformance.reason


# --- 8: the command's inputs


def test_a_layout_of_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    paths = write_run(run_of(), tmp_path)
    with pytest.raises(LayoutError, match="`layout` tp4: has 4 ranks, but the traces are of 2"):
        import_traces(paths, layout=Layout(tp=4))


def test_files_that_cannot_be_written_are_refused_before_reading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_run(run_of(), tmp_path)[0])
    for option in ("--perfetto", "--report"):
        assert main.run(["import", path, option, str(tmp_path / "none" / "x.json")]) == 2
        captured = capsys.readouterr()
        assert "there is no folder" in captured.err
        assert captured.out == ""
        assert captured.err.count("\n") == 1


def test_a_time_that_is_no_number_is_damage(tmp_path: Path) -> None:
    path = write_run(run_of(), tmp_path)[0]
    document = json.loads(path.read_bytes())
    spoilt = [e for e in document["traceEvents"] if e["name"] == "record_param_comms"]
    spoilt[3]["ts"], spoilt[5]["dur"] = float("nan"), float("inf")
    write_trace(document, path)
    result = import_traces([path])
    assert result.traces[0].num_damaged == 2
    json.dumps(result.to_dict(), allow_nan=False)
    assert {row.row.phase for row in result.rows} == {"prefill", "decode"}


def test_a_folder_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(run_of(), tmp_path)
    assert main.run(["import", str(tmp_path)]) == 0
    assert "consistent with itself" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main.run(["import", str(tmp_path / "empty")]) == 2
    assert "a folder without traces" in capsys.readouterr().err


# --- 9: what public traces showed


def flat(self: RankWriter, tokens: int, columns: int) -> None:
    """An all-reduce whose tensor has one dimension, as symmetric memory gets it."""
    dims = {"Input Dims": [[tokens * columns], []], "Input type": ["c10::BFloat16", ""]}
    identity = {"External id": self.next_id}
    self.next_id += 1
    self.emit("cpu_op", "symm_mem::multimem_all_reduce_", self.now, 8, **identity, **dims)
    self.emit(
        "kernel", "void multimem_all_reduce_kernel<c10::BFloat16>(x)", self.now + 5, 4, **identity
    )
    self.now += 12


def padded_experts(self: RankWriter, batch: Batch) -> None:
    start = self.now
    self.now += 5
    for number in range(2 * self.run.layers[0] + 1):
        flat(self, batch.tokens, 384 if number and not number % 2 else self.run.hidden)
    self.label(batch, start, self.now)


def test_flat_messages_and_padded_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One all-reduce of hidden columns and one of the experts' padded columns a layer."""
    monkeypatch.setattr(RankWriter, "forward", padded_experts)
    prompt = Batch(context_requests=1, context_tokens=37)
    run = run_of(hidden=320, layers=(4,), tp=2, batches=(prompt, Batch(decoding=1)))
    monkeypatch.setattr("weft.importer.conformance._EXPERT_COLUMNS", 128)
    result: ImportedTrace = import_traces(write_run(run, tmp_path), model=spec_of(run))
    shapes = {r.row.input_shape: r.row.count for r in result.rows if r.row.op == "all_reduce"}
    assert shapes == {(37, 320): 5, (37, 384): 4, (1, 320): 5, (1, 384): 4}
    assert result.conformance.conforms, result.conformance.reason
    blind = import_traces(write_run(run, tmp_path))
    assert blind.conformance.verdict == "consistent with itself"
    assert (blind.facts.hidden_size, blind.facts.num_layers) == (320, 4)


def test_groups_of_a_training_job_and_impossible_bandwidth(tmp_path: Path) -> None:
    def record(ts: float, elements: int, ranks: str, size: int) -> list[dict[str, Any]]:
        args = {"Collective name": "allreduce", "In msg nelems": elements, "Out msg nelems": elements,
                "dtype": "Float", "Group size": size, "Process Group Ranks": ranks, "External id": int(ts)}  # fmt: skip
        host = {"ph": "X", "cat": "cpu_op", "name": "record_param_comms", "ts": ts, "dur": 3}
        return [host | {"args": args}, kernel("ncclDevKernel_AllReduce(x)", ts + 5, **args)]

    events = record(10, 1 << 30, "[0, 1, 2, 3]", 4) + record(50, 256, "[0, 2]", 2)
    path = write_trace(
        {"distributedInfo": {"rank": 0, "world_size": 4}, "traceEvents": events},
        tmp_path / "a.json",
    )
    result = import_traces([path])
    document = result.to_dict()
    groups = {(row["group"], row["group_size"]) for row in document["collectives"]}
    assert groups == {("world", 2), ("world", 4)}
    large = next(row for row in document["collectives"] if row["group_size"] == 4)
    assert large["algbw_gb_s"] is None
    assert any("cannot be that of the transfer" in note for note in result.notes)


def test_annotations_of_older_profilers_are_calls(tmp_path: Path) -> None:
    """Before torch 2.1 the records have no names: the backend's annotations tell the calls."""
    events: list[dict[str, Any]] = []
    for number in range(4):
        start = 1000.0 * number
        span = {"ph": "X", "tid": 3, "ts": start, "dur": 50}
        dims = {"Input Dims": [[64, 16], [8, 16], []], "Input type": ["float", "float", ""]}
        events.append(span | {"cat": "cpu_op", "name": "c10d::_allgather_base_", "args": dims})
        events.append(
            span | {"cat": "cpu_op", "name": "record_param_comms", "ts": start + 1, "args": {}}
        )
        own = {"Input Dims": [[8, 16]], "Input type": ["float"]}
        events.append(
            span
            | {
                "cat": "user_annotation",
                "name": "nccl:_all_gather_base",
                "ts": start + 2,
                "dur": 40,
                "args": own,
            }
        )
        events.append(
            span
            | {
                "cat": "cuda_runtime",
                "name": "cudaLaunchKernel",
                "ts": start + 5,
                "dur": 3,
                "args": {"correlation": number},
            }
        )
        events.append(
            kernel("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(x)", start + 100, correlation=number)
            | {"dur": 77}
        )
    path = write_trace(
        {"distributedInfo": {"rank": 0, "world_size": 16}, "traceEvents": events},
        tmp_path / "a.json",
    )
    result = import_traces([path])
    (measured,) = result.rows
    row = measured.row
    assert (row.op, row.count, row.input_shape, row.output_shape) == (
        "all_gather",
        4,
        (8, 16),
        (64, 16),
    )
    assert row.group_size == 8
    assert row.duration_us is not None
    assert row.duration_us.median == 77
    assert not result.unexplained


def test_a_table_wider_than_the_terminal_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_run(run_of(), tmp_path)[0])
    monkeypatch.setattr("weft.cli.output.table_width", lambda: 80)
    assert main.run(["import", path]) == 0
    output = capsys.readouterr().out
    assert "columns not shown" in output
    assert (
        max(map(len, [line for line in output.splitlines() if line.startswith(("│", "┃"))])) <= 80
    )


def test_an_all_reduce_that_leaves_no_trace_is_not_called_missing(tmp_path: Path) -> None:
    """Weft's own on a CPU is no operator of torch."""
    events = [
        {"ph": "X", "cat": "user_annotation", "name": name, "tid": 1, "ts": start, "dur": length,
         "args": {"Input Dims": [[1, 2]], "Input type": ["float"]}}
        for name, start, length in [
            ("weft_context_1(4)_generation_0(0)_logits_1", 0, 50), ("gloo:all_gather", 40, 5)
        ]
    ]  # fmt: skip
    whole = {"distributedInfo": {"rank": 0, "world_size": 2, "backend": "gloo"}}
    path = write_trace(whole | {"traceEvents": events}, tmp_path / "rank0.json")
    verdict = import_traces([path], model=load_spec("embedded")).conformance
    assert verdict.conforms is None
    assert "leaves nothing in a profile" in verdict.reason
