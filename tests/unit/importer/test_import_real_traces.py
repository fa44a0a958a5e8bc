"""Stretches of real traces (tests/data/traces): the figures counted in the originals."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.importer.imported import ImportedTrace
from weft.importer.importing import import_traces
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec

TRACES = Path(__file__).parents[2] / "data" / "traces"


def imported(prefix: str, **options: object) -> ImportedTrace:
    return import_traces(sorted(TRACES.glob(f"{prefix}_rank*.json.gz")), **options)  # type: ignore[arg-type]


def counts(result: ImportedTrace) -> dict[tuple[str, str, tuple[int, ...] | None, str | None], int]:
    return {
        (r.row.phase, r.row.op, r.row.input_shape, r.row.dtype): r.row.count for r in result.rows
    }


def verdict(result: ImportedTrace) -> tuple[bool | None, str]:
    return result.conformance.conforms, result.conformance.verdict


def test_h200_tensor_parallel() -> None:
    result = imported("vllm_h200_tp2", model=load_spec("llama-3.1-8b"))
    assert counts(result) == {
        ("prefill", "all_reduce", (128, 4096), "bfloat16"): 65,
        ("decode", "all_reduce", (1, 4096), "bfloat16"): 31 * 65,
        ("prefill", "all_gather", (1, 64128), "bfloat16"): 1,
        ("decode", "all_gather", (1, 64128), "bfloat16"): 31,
    }
    assert result.schedule.engine == "vllm"
    assert result.schedule.layout == Layout(tp=2)
    assert verdict(result) == (None, "cannot tell")
    assert "rank 0 of 2 not given; all 4 rows that are there" in result.conformance.reason
    assert not result.unexplained
    provenance = {row.row.op: row.row.provenance for row in result.rows}
    assert provenance == {"all_reduce": "model", "all_gather": "metadata"}
    assert {row.row.bound for row in result.rows} == {"upper"}
    assert all(row.row.wait_us is None for row in result.rows)
    assert (result.schedule.workload.prompt_tokens, result.schedule.workload.decode_tokens) == (
        128,
        32,
    )


def test_h200_pipeline_of_weft_served_with_graphs() -> None:
    result = imported("weft_h200_pp2", model=load_spec("llama-3.1-8b"))
    assert verdict(result) == (True, "conforms")
    assert (result.schedule.engine, result.schedule.layout) == ("weft", Layout(pp=2))
    found = [(r.row.phase, r.row.op, r.row.input_shape, r.row.count) for r in result.rows]
    assert sorted(found) == sorted(
        row
        for op in ("send", "recv")
        for row in (
            ("prefill", op, (64, 4096), 2),
            ("decode", op, (1, 4096), 30),
            ("prefill", "broadcast", (1,), 2),
            ("decode", "broadcast", (1,), 30),
        )
    )


def test_h200_tensor_parallel_without_a_model_is_matched_to_the_only_one_that_fits() -> None:
    result = imported("vllm_h200_tp2")
    assert (result.schedule.model.name, result.model_source) == ("llama-3.1-8b", "matched")
    assert verdict(result) == (None, "cannot tell")


def test_h200_pipeline_last_stage() -> None:
    result = imported("vllm_h200_pp2", model=load_spec("llama-3.1-8b"))
    assert counts(result) == {
        ("prefill", "recv", (128, 4096), "bfloat16"): 2,
        ("decode", "recv", (1, 4096), "bfloat16"): 62,
        ("prefill", "broadcast", (1, 1), "int64"): 1,
        ("prefill", "broadcast", (2, 1), "int32"): 1,
        ("decode", "broadcast", (1, 1), "int64"): 31,
        ("decode", "broadcast", (2, 1), "int32"): 31,
    }
    assert result.schedule.layout == Layout(pp=2)
    assert {row.row.stage for row in result.rows} == {1}
    assert verdict(result) == (None, "cannot tell")
    assert not result.unexplained
    headers = [c for c in result.control if c.op == "recv"]
    assert sum(c.count for c in headers) == 64
    assert sum(c.count for c in result.control if c.op == "wait") == 64


def test_cpu_tensor_parallel_has_exact_shapes_and_times_apart() -> None:
    result = imported("vllm_cpu_tp2")
    assert counts(result) == {
        ("prefill", "all_reduce", (128, 256), "bfloat16"): 65,
        ("decode", "all_reduce", (1, 256), "bfloat16"): 15 * 65,
        ("prefill", "all_gather", (1, 64128), "bfloat16"): 1,
        ("decode", "all_gather", (1, 64128), "bfloat16"): 15,
    }
    assert result.schedule.engine == "vllm-cpu"
    assert verdict(result) == (None, "consistent with itself")
    decode = next(r for r in result.rows if (r.row.phase, r.row.op) == ("decode", "all_reduce"))
    assert decode.row.message_bytes == 512
    assert decode.row.provenance == "shape"
    assert decode.row.transfer_us is not None
    assert decode.row.transfer_us.median == pytest.approx(2.7, abs=0.1)
    assert decode.row.duration_us is not None
    assert 1300 * 975 < decode.row.duration_us.total < 1600 * 975
    assert decode.row.bound is None
    clock = result.clocks[1]
    assert clock.is_consistent
    assert abs(clock.offset_us) < 2


@pytest.mark.parametrize("given", [True, False])
def test_cpu_pipeline_sizes_the_receiver_by_the_sender(given: bool) -> None:
    model = load_spec("embedded") if given else None
    result = imported("vllm_cpu_pp2", model=model)
    received = {key: count for key, count in counts(result).items() if key[1] == "recv"}
    assert received == {
        ("prefill", "recv", (128, 256), "bfloat16"): 2,
        ("decode", "recv", (1, 256), "bfloat16"): 30,
    }
    assert result.conformance.conforms is (False if given else None)
    assert given or result.conformance.verdict == "consistent with itself"
    assert sum(c.count for c in result.control) == 32


def test_cpu_pipeline_receiver_alone_is_sized_by_the_model() -> None:
    model = load_spec("embedded")
    result = import_traces([TRACES / "vllm_cpu_pp2_rank1.json.gz"], model=model)
    shapes = {r.row.input_shape: (r.row.count, r.row.provenance) for r in result.rows}
    assert shapes == {(128, 128): (2, "model"), (1, 128): (30, "model")}


@pytest.mark.parametrize(
    ("prefix", "layout", "num_rows"),
    [
        ("vllm_cpu_tp2_mixed", Layout(tp=2), 9),
        ("vllm_cpu_pp2_mixed", Layout(pp=2), 10),
        ("vllm_cpu_tp2pp2", Layout(tp=2, pp=2), 10),
    ],
)
def test_served_traffic_and_other_layouts_conform(
    prefix: str, layout: Layout, num_rows: int
) -> None:
    result = imported(prefix)
    assert result.schedule.layout == layout
    assert verdict(result) == (None, "consistent with itself"), result.conformance.reason
    assert len(result.rows) == num_rows
    assert not result.unexplained


def test_mixed_steps_count_tokens_and_sequences_of_the_label() -> None:
    result = imported("vllm_cpu_tp2_mixed")
    mixed = {k[1:3]: n for k, n in counts(result).items() if k[0] == "mixed"}
    assert mixed == {
        ("all_reduce", (64, 128)): 11,
        ("all_reduce", (46, 128)): 11,
        ("all_gather", (3, 256)): 2,
    }
    assert not result.is_uniform


def test_plain_torch_distributed_job() -> None:
    result = imported("gloo")
    assert result.schedule.engine == "torch"
    assert result.conformance.conforms is None
    assert counts(result)["other", "reduce_scatter", (6, 4), "float32"] == 1
    assert counts(result)["other", "all_reduce", (6, 4), "float32"] == 2
    assert counts(result)["other", "recv", (6, 4), "float32"] == 2
    assert counts(result)["other", "reduce", (6, 4), "float32"] == 1
    assert {row.row.group for row in result.rows} == {"world"}
    assert not result.unexplained
    assert sorted(c.op for c in result.control) == ["barrier"]


def test_wrong_model_names_the_dimensions() -> None:
    result = imported("vllm_h200_tp2", model=load_spec("llama-2-13b"))
    assert result.conformance.conforms is False
    assert "num_layers: the trace shows 32, llama-2-13b has 40" in result.conformance.reason
    assert "vocab_size: the trace shows 128256, llama-2-13b has 32000" in result.conformance.reason
    wrong_hidden = imported("vllm_h200_pp2", model=load_spec("llama-2-13b"))
    assert "hidden_size: the trace shows 4096" in wrong_hidden.conformance.reason


def test_v0_schedule_is_told_from_todays_by_the_gather() -> None:
    result = imported("vllm_h200_tp2", model=load_spec("llama-3.1-8b"), engine="vllm-v0")
    assert result.conformance.conforms is False
    verdicts = {(r.verdict, r.row.op) for r in result.conformance.rows}
    assert {("missing", "gather"), ("surplus", "all_gather"), ("equal", "all_reduce")} == verdicts
    assert {c.op for c in result.unexplained} == {"all_gather"}


@pytest.mark.parametrize(
    ("family", "prefill", "num_all_reduces"),
    [
        ("gemma3", ("prefill", (147, 128)), 2 * 7 + 1),
        ("deepseek_v2", ("mixed", (108, 128)), 2 * 5 + 1),
    ],
)
def test_families_conform(family, prefill, num_all_reduces) -> None:
    prefix = f"vllm_cpu_{family}_tp2"
    result = imported(prefix, model=load_spec(str(TRACES / "models" / prefix)))
    assert verdict(result) == (True, "conforms"), result.conformance.reason
    assert not result.unexplained
    phase, shape = prefill
    assert counts(result)[phase, "all_reduce", shape, "bfloat16"] == num_all_reduces
    all_reduces = sum(row.row.count for row in result.rows if row.row.op == "all_reduce")
    assert all_reduces == num_all_reduces * len(result.traces[0].busy_steps)


FAMILY_TRACES = sorted(
    path.name.removesuffix("_rank0.json.gz") for path in TRACES.glob("families/*_rank0.json.gz")
)


@pytest.mark.parametrize("run", FAMILY_TRACES)
def test_every_family_of_experts_windows_and_latents_conforms(run) -> None:
    """vllm-cpu 0.32, recorded by tests/engine/record_vllm_trace.py --family F --tp 2 (or --pp 2)."""
    family, _, layout = run.rpartition("_")
    spec = load_spec(str(TRACES / "families" / family))
    result = imported(f"families/{run}", model=spec)
    assert result.schedule.layout == Layout.parse(layout)
    assert verdict(result) == (True, "conforms"), result.conformance.reason
    assert not result.unexplained
    tokens = sum(step.label.num_tokens or 0 for step in result.traces[0].busy_steps)
    op, calls = ("send", 2) if layout == "pp2" else ("all_reduce", 2 * spec.num_layers + 1)
    rows = [row.row for row in result.rows if row.row.op == op]
    assert sum(row.count * (row.input_shape or (0,))[0] for row in rows) == calls * tokens
