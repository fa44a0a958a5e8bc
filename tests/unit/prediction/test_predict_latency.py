"""The time model against measurements, and the laws that it must keep."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.calibration.measured import h200_runs, measurements
from weft.calibration.scoreboard import TPOT, TTFT, score_runs
from weft.closed_form.schedule import closed_form
from weft.errors import LayoutError, UserError, WorkloadError
from weft.prediction.datasheets import DATA_SHEETS
from weft.prediction.latency import predict_latency
from weft.prediction.layer_work import layers_of
from weft.prediction.machines import USUAL_FABRIC, machine_named
from weft.prediction.prediction import FLOAT8, PARTS, Machine, Prediction
from weft.prediction.quantity import Estimate
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.weight_formats import FORMATS
from weft.vocabulary.workload import Workload

H200 = machine_named("vllm", "h200-sxm")
LAYOUTS = [Layout.parse(name) for name in ("1", "tp2", "tp4", "pp2", "pp4", "tp2xpp2", "sp2")]
MODELS = ["llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b", "qwen3-30b-a3b"]


def predict(
    model: str = "llama-3.1-8b",
    layout: str = "tp2",
    machine: Machine = H200,
    batch: int = 1,
    prompt: int = 128,
    decode: int = 128,
) -> Prediction:
    load = Workload(prompt_tokens=prompt, decode_tokens=decode, batch=batch)
    return predict_latency(load_spec(model), Layout.parse(layout), load, machine)


@pytest.mark.parametrize(("quantity", "limit"), [(TPOT, 0.04), (TTFT, 0.12)])
def test_nine_measured_rows(quantity: str, limit: float) -> None:
    scores = [score for score in score_runs(h200_runs()) if score.quantity == quantity]
    assert len(scores) == 9
    assert statistics.mean(abs(score.error) for score in scores) <= limit
    assert all(score.is_inside for score in scores)


@pytest.mark.parametrize(
    ("model", "layout", "tpot_ms", "ttft_ms"),
    # Wide brackets: the order of magnitude of what no constant was fitted to.
    [
        ("llama-3.1-8b", "tp4", (2.3, 3.2), (8, 13)),
        ("llama-3.1-8b", "pp4", (4.6, 5.6), (9, 15)),
        ("llama-3.1-70b", "tp4", (10.5, 14.0), (15, 30)),
    ],
)
def test_unseen_layouts_and_models_are_in_range(
    model: str, layout: str, tpot_ms: tuple[float, float], ttft_ms: tuple[float, float]
) -> None:
    prediction = predict(model, layout)
    assert tpot_ms[0] < prediction.tpot_ms.value < tpot_ms[1]
    assert ttft_ms[0] < prediction.ttft_ms.value < ttft_ms[1]


def test_no_step_is_faster_than_reading_the_weights_at_the_measured_ceiling() -> None:
    for layout, gpus in (("1", 1), ("tp2", 2), ("tp4", 4)):
        floor_ms = 2 * 7.505e9 / gpus / 4.8e12 * 1e3
        assert predict(layout=layout).tpot_ms.value > floor_ms


def test_constants_stay_below_what_the_device_was_seen_to_do() -> None:
    floors = measurements("h200x4")["floors"]
    device = H200.accelerator
    assert device.matmul_tflops.value <= floors["bf16_tflop_s"]
    assert device.copy_gb_s.value <= 1e3 * floors["hbm_tb_s"]
    assert device.stream_gb_s.value <= 4800
    assert H200.fabric.intra.bandwidth_gb_s == pytest.approx(floors["p2p_copy_gb_s"], rel=0.01)


def test_another_engine_on_the_same_gpu_is_near() -> None:
    rows = measurements("h200x4")["gpt_fast"]["rows"]
    alone = next(row for row in rows if row["tp"] == 1)
    assert predict(layout="1").tpot_ms.value == pytest.approx(alone["tpot_ms"], rel=0.1)


batches = st.integers(1, 64)
prompts = st.integers(1, 4096)
layouts = st.sampled_from(LAYOUTS)
models = st.sampled_from(MODELS)


@settings(max_examples=60, deadline=None)
@given(model=models, layout=layouts, batch=batches, prompt=prompts)
def test_parts_add_up_and_intervals_hold_the_value(
    model: str, layout: Layout, batch: int, prompt: int
) -> None:
    prediction = predict(model, layout.name, batch=batch, prompt=prompt)
    for phase in (prediction.prefill, prediction.decode):
        total = sum(getattr(phase, f"{part}_ms") for part in PARTS)
        assert total == pytest.approx(phase.total_ms)
        assert 0 <= phase.communication_share < 1
        calls = sum(item.time_us for item in phase.collectives)
        assert calls * 1e-3 == pytest.approx(phase.communication_ms)
    for estimate in (prediction.ttft_ms, prediction.tpot_ms, prediction.tokens_per_s):
        assert 0 < estimate.low < estimate.value < estimate.high


@settings(max_examples=60, deadline=None)
@given(model=models, layout=layouts, batch=batches, prompt=prompts)
def test_a_larger_batch_never_has_a_lower_tpot_or_ttft(
    model: str, layout: Layout, batch: int, prompt: int
) -> None:
    small = predict(model, layout.name, batch=batch, prompt=prompt)
    large = predict(model, layout.name, batch=2 * batch, prompt=prompt)
    assert large.tpot_ms.value >= small.tpot_ms.value * (1 - 1e-9)
    assert large.ttft_ms.value >= small.ttft_ms.value * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(model=models, layout=layouts, batch=batches, prompt=prompts)
def test_a_longer_prompt_is_never_faster(
    model: str, layout: Layout, batch: int, prompt: int
) -> None:
    short = predict(model, layout.name, batch=batch, prompt=prompt)
    long = predict(model, layout.name, batch=batch, prompt=prompt + 512)
    assert long.tpot_ms.value >= short.tpot_ms.value * (1 - 1e-9)
    assert long.memory.total_gb >= short.memory.total_gb


@settings(max_examples=60, deadline=None)
@given(
    model=models,
    layout=layouts,
    batch=batches,
    factor=st.floats(1.01, 4.0),
    field=st.sampled_from(
        ["matmul_tflops", "stream_gb_s", "cache_gb_s", "copy_gb_s", "attention_tflops"]
    ),
)
def test_a_faster_device_is_never_slower(
    model: str, layout: Layout, batch: int, factor: float, field: str
) -> None:
    old = getattr(H200.accelerator, field)
    faster = replace(old, value=old.value * factor)
    machine = replace(H200, accelerator=replace(H200.accelerator, **{field: faster}))
    before = predict(model, layout.name, batch=batch, prompt=1024)
    after = predict(model, layout.name, machine, batch=batch, prompt=1024)
    assert after.tpot_ms.value <= before.tpot_ms.value * (1 + 1e-9)
    assert after.ttft_ms.value <= before.ttft_ms.value * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from(["tp4", "tp8", "tp2xpp4", "pp8", "sp8", "tp4xpp2"]),
    batch=batches,
    factor=st.floats(1.01, 8.0),
    tier=st.sampled_from(["intra", "inter"]),
    rule=st.sampled_from(["vllm", "nccl", "weft", "fastest"]),
)
def test_a_faster_link_is_never_slower(
    layout: str, batch: int, factor: float, tier: str, rule: str
) -> None:
    slow = machine_named("vllm", "a100-80g")
    slow = replace(slow, profile=replace(slow.profile, all_reduce=rule))
    old = slow.fabric.tier(tier)
    links = replace(old, bandwidth_gb_s=old.bandwidth_gb_s * factor)
    fast = replace(slow, fabric=replace(slow.fabric, **{tier: links}))
    shape = replace(Layout.parse(layout), nodes=2 if "8" in layout or "x" in layout else 1)
    load = Workload(prompt_tokens=512, decode_tokens=64, batch=batch)
    spec = load_spec("llama-3.1-8b")
    before = predict_latency(spec, shape, load, slow)
    after = predict_latency(spec, shape, load, fast)
    assert after.tpot_ms.value <= before.tpot_ms.value * (1 + 1e-9)
    assert after.ttft_ms.value <= before.ttft_ms.value * (1 + 1e-9)


@pytest.mark.parametrize("engine", ["weft", "vllm", "vllm-v0"])
@pytest.mark.parametrize("accelerator", list(USUAL_FABRIC))
def test_every_engine_on_every_builtin_device(engine: str, accelerator: str) -> None:
    machine = machine_named(engine, accelerator)
    prediction = predict("llama-3.1-8b", "tp4", machine)
    assert 0.5 < prediction.tpot_ms.value < 100
    sources = prediction.to_dict()["provenance"]
    assert all(row["source"] for row in sources.values())


def test_the_counts_are_the_closed_forms() -> None:
    prediction = predict(layout="tp4", decode=2)
    load = Workload(prompt_tokens=128, decode_tokens=2, batch=1)
    schedule = closed_form(load_spec("llama-3.1-8b"), Layout.parse("tp4"), load, "vllm")
    for phase in ("prefill", "decode"):
        counts = {
            (row.op, row.message_bytes): row.count
            for row in schedule.collectives
            if row.phase == phase
        }
        found = {
            (item.op, item.message_bytes): item.count
            for item in getattr(prediction, phase).collectives
        }
        assert found == counts


def test_eight_bit_weights_halve_the_weights_and_are_faster() -> None:
    plain = predict(layout="tp2")
    small = predict(layout="tp2", machine=replace(H200, weight_dtype=FLOAT8))
    assert small.tpot_ms.value < plain.tpot_ms.value
    assert small.memory.weights_gb < 0.6 * plain.memory.weights_gb


def test_weights_of_a_rank_are_the_models_parameters() -> None:
    spec = load_spec("llama-3.1-8b")
    memory = predict(layout="1").memory
    assert memory.weights_gb == pytest.approx(2 * spec.num_parameters * 1e-9, rel=1e-3)


def test_expert_parallelism_holds_a_share_of_the_experts() -> None:
    together = predict("qwen3-30b-a3b", "tp4")
    apart = predict("qwen3-30b-a3b", "tp4xep4")
    assert apart.memory.weights_gb == pytest.approx(together.memory.weights_gb)
    assert apart.tpot_ms.value == pytest.approx(together.tpot_ms.value, rel=0.2)


def test_what_does_not_fit_says_so_with_numbers() -> None:
    memory = predict("llama-3.1-70b", "1").memory
    assert not memory.fits
    assert "weights 141.1" in memory.shortage


def test_replicas_share_the_batch() -> None:
    alone = predict(layout="tp2", batch=4, prompt=1024)
    spread = predict(layout="dp2xtp2", batch=8, prompt=1024)
    assert spread.tpot_ms.value == pytest.approx(alone.tpot_ms.value)
    assert spread.tokens_per_s.value == pytest.approx(2 * alone.tokens_per_s.value)


def test_mistakes_name_the_fix() -> None:
    with pytest.raises(UserError, match="no latency profile"):
        machine_named("vllm-cpu", "h200-sxm")
    with pytest.raises(UserError, match="weft calibrate"):
        machine_named("vllm", "h300")
    with pytest.raises(WorkloadError, match="`weights` int3"):
        machine_named("vllm", "h200-sxm", weights="int3")
    with pytest.raises(LayoutError, match="does not divide"):
        predict(layout="tp3")
    with pytest.raises(LayoutError, match="`ep` 8: times are predicted"):
        predict("qwen3-30b-a3b", "dp2xtp4xpp2xep8")
    with pytest.raises(WorkloadError, match="131072 positions"):
        predict(prompt=131072)


def test_nodes_of_h200_have_eight_gpus_and_a_network_of_their_own() -> None:
    usual = machine_named("vllm", "h200-sxm").fabric
    assert usual.gpus_per_node == 8
    assert usual.inter.bandwidth_gb_s > 40
    assert {table.nodes for table in usual.tables} == {1}
    assert machine_named("vllm", "h200-sxm", "h200-nvlink").fabric.gpus_per_node == 4


@pytest.mark.parametrize("name", [*DATA_SHEETS, "h200-sxm"])
def test_every_device_has_links_and_predicts(name: str) -> None:
    machine = machine_named("vllm", name)
    found = predict_latency(load_spec("llama-3.1-8b"), Layout(tp=2), Workload(), machine)
    assert 0.5 < found.tpot_ms.value < 40


@pytest.mark.parametrize("engine", ["sglang", "trtllm"])
@pytest.mark.parametrize("weights", [name for name in FORMATS if name != "float64"])
def test_every_format_under_engines_with_public_kernels(engine: str, weights: str) -> None:
    machine = machine_named(engine, "b200-sxm", weights=weights)
    found = predict_latency(load_spec("qwen3-30b-a3b"), Layout(tp=2), Workload(), machine)
    wide = predict_latency(
        load_spec("qwen3-30b-a3b"), Layout(tp=2), Workload(), machine_named(engine, "b200-sxm")
    )
    assert found.memory.weights_gb <= 2 * wide.memory.weights_gb
    assert found.tpot_ms.value > 0.3


def test_estimates_turn_around() -> None:
    estimate = Estimate.around(10.0, 1.0)
    rate = estimate.inverse(100.0)
    assert rate.value == pytest.approx(10.0)
    assert rate.low < 10.0 < rate.high
    assert estimate.contains(10.5)
    assert not estimate.contains(20.0)
    assert estimate.overlaps(estimate.scaled(1.1))
    assert not estimate.overlaps(estimate.scaled(9.0))


@pytest.mark.parametrize(
    "model",
    [
        "deepseek-v3",
        "kimi-k2",
        "qwen3-30b-a3b",
        "llama-3.1-8b",
        "glm-4.5",
        "qwen3-next-80b-a3b",
        "qwen3.5-397b-a17b",
        "gpt-oss-20b",
        "minimax-m2",
        "llama-4-maverick",
    ],
)
def test_the_work_of_the_layers_is_that_of_all_parameters(model: str) -> None:
    spec = load_spec(model)
    held = 0.0
    for count, attention, feed_forward in layers_of(spec, 1, 1):
        held += count * sum(n * k for n, k, _ in (*attention.products, *feed_forward.products))
        if feed_forward.experts is not None:
            work = feed_forward.experts
            held += count * 3 * work.held * work.inner * spec.hidden_size
    embedding = spec.embedding_parameters * (1 if spec.tie_embeddings else 2)
    assert held + embedding == pytest.approx(spec.num_parameters, rel=0.002)
