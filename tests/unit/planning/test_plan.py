"""Plans: the space, what is rejected and why, ranking, ties, what-if and command lines."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import click
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.run import get_args_parser

from weft import api, report
from weft.cli.main import app
from weft.errors import LayoutError, UserError, WorkloadError
from weft.planning.explain import explain
from weft.planning.launch_commands import launch_commands
from weft.planning.objective import Limits, Objective, Question
from weft.planning.planner import Plan, make_plan
from weft.planning.space import Cluster, layouts
from weft.planning.what_if import with_settings
from weft.prediction.machines import machine_named
from weft.prediction.prediction import FLOAT8
from weft.report import document
from weft.report.documents import report_of
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import workload_named

H200 = machine_named("vllm", "h200-sxm")
A100 = machine_named("vllm", "a100-80g")


def question(model: str = "llama-3.1-70b", **changes: object) -> Question:
    base = Question(spec=load_spec(model), workload=workload_named("chat"), machine=H200)
    return replace(base, **changes)  # type: ignore[arg-type]


def plan(gpus: int = 4, width: int = 4, model: str = "llama-3.1-70b", **changes: object) -> Plan:
    return make_plan(question(model, **changes), Cluster(num_gpus=gpus, gpus_per_node=width))


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(["llama-3.1-8b", "llama-3.2-3b", "llama-2-13b", "qwen3-30b-a3b"]),
    gpus=st.sampled_from([1, 2, 3, 4, 6, 8, 16, 24, 32]),
    width=st.sampled_from([1, 2, 4, 8]),
)
def test_the_space_is_whole_and_every_layout_uses_all_gpus(
    model: str, gpus: int, width: int
) -> None:
    if gpus > width and gpus % width:
        with pytest.raises(LayoutError, match="whole number of nodes"):
            Cluster(num_gpus=gpus, gpus_per_node=width)
        return
    spec = load_spec(model)
    usable, rejected = layouts(spec, Cluster(num_gpus=gpus, gpus_per_node=width))
    names = [layout.name for layout in usable]
    assert len(names) == len(set(names))
    assert all(layout.world_size == gpus for layout in usable)
    products = {(layout.tp, layout.pp) for layout in usable} | {
        (Layout.parse(item.name).tp, Layout.parse(item.name).pp) for item in rejected
    }
    divisors = [n for n in range(1, gpus + 1) if gpus % n == 0]
    assert products == {(t, p) for t in divisors for p in divisors if gpus % (t * p) == 0}
    assert all(item.reason for item in rejected)


@pytest.mark.parametrize("objective", list(Objective))
def test_what_does_not_fit_is_never_ranked(objective: Objective) -> None:
    found = plan(objective=objective)
    for candidate in found.ranked:
        assert candidate.prediction.memory.fits
        if candidate.serving:
            assert candidate.serving.memory.fits
    reasons = {item.name: item.reason for item in found.rejected}
    assert "weights 141.1" in reasons["dp4"]


@pytest.mark.parametrize("objective", list(Objective))
def test_ranked_by_score_with_the_best_first(objective: Objective) -> None:
    found = plan(objective=objective)
    scores = [candidate.score for candidate in found.ranked]
    assert scores == sorted(scores)
    assert found.is_tied(found.best)
    json.dumps(found.to_dict())


def test_one_gpu_does_not_hold_405b() -> None:
    with pytest.raises(LayoutError, match=r"weights .* of .* GB.*more `num_gpus`"):
        plan(4, model="llama-3.1-405b")


def test_limits_reject_with_the_numbers_and_name_the_option() -> None:
    found = plan(limits=Limits(tpot_ms=16.0))
    assert all(candidate.tpot_ms <= 16.0 for candidate in found.ranked)
    reasons = {item.name: item.reason for item in found.rejected}
    assert "above the limit of 16 ms" in reasons["tp2xpp2"]
    with pytest.raises(LayoutError, match="relax `ttft` or `tpot`"):
        plan(limits=Limits(ttft_ms=1.0))
    with pytest.raises(WorkloadError, match="`tpot_ms` -1"):
        Limits(tpot_ms=-1)


def test_goodput_keeps_the_limits_and_beats_no_limits_nowhere() -> None:
    free = plan(objective=Objective.GOODPUT)
    bound = plan(objective=Objective.GOODPUT, limits=Limits(tpot_ms=20.0, ttft_ms=1000.0))
    assert all(c.tpot_ms <= 20 and c.ttft_ms <= 1000 for c in bound.ranked)
    assert bound.best.score >= free.best.score


def test_the_pareto_front_is_a_front() -> None:
    found = plan(objective=Objective.THROUGHPUT)
    front = found.pareto()
    for point in found.points:
        assert any(
            other.tpot_ms <= point.tpot_ms and other.tokens_per_s >= point.tokens_per_s
            for other in front
        )
    tpots = [point.tpot_ms for point in front]
    assert tpots == sorted(tpots)
    page = report.render(report.report_of([report.document(found.to_dict(), "plan")]))
    assert "Throughput against latency" in page


def test_explanations() -> None:
    found = plan(16, machine=A100, workload=workload_named("decode-heavy"))
    best = found.best.layout.name
    assert "is the best layout" in explain(found, best).summary
    worst = found.ranked[-1]
    text = explain(found, worst.layout.name)
    assert f"number {len(found.ranked)} of {len(found.ranked)}" in text.summary
    assert f"behind {best}" in text.summary
    parts = {(item.phase, item.part): item for item in text.differences}
    assert parts["decode", "total"].difference_ms > 0
    assert "cannot be used: needs" in explain(found, "tp1").summary
    with pytest.raises(LayoutError, match="not a layout of 16 GPUs"):
        explain(found, "tp5")


def test_communication_is_named_where_it_decides() -> None:
    slow = with_settings(A100, ["inter.bandwidth=1", "inter.latency=100"])
    found = plan(16, machine=slow)
    summary = explain(found, "tp16").summary
    assert "communication" in summary
    assert "over tp16" in summary


@pytest.mark.parametrize(
    "setting",
    [
        "inter.bandwidth=x4",
        "inter.latency=1",
        "intra.bandwidth_gb_s=900",
        "intra.latency_us=x0.5",
        "accelerator.stream_gb_s=x2",
        "engine.step_us=1",
    ],
)
def test_a_better_machine_is_never_slower(setting: str) -> None:
    before = plan(16, machine=A100)
    after = plan(16, machine=with_settings(A100, [setting]))
    assert after.best.score <= before.best.score
    inputs = after.best.prediction.to_dict()["provenance"]
    assert any("set by hand" in row["source"] for row in inputs.values())


def test_setting_a_tier_drops_what_was_measured_on_it() -> None:
    changed = with_settings(H200, ["intra.latency=x1"]).fabric
    assert all(table.nodes > 1 for table in changed.tables)
    changed = with_settings(H200, ["inter.latency=x1"]).fabric
    assert all(table.nodes == 1 for table in changed.tables)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("inter.color=1", "latency"),
        ("moon.latency=1", "unknown"),
        ("inter.latency", "number above 0"),
        ("inter.latency=fast", "number above 0"),
        ("inter.latency=-1", "number above 0"),
        ("inter.latency=nan", "number above 0"),
        ("accelerator.name=1", "no such field"),
        ("engine.magic=1", "no such field"),
    ],
)
def test_bad_settings_name_what_can_be_set(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_settings(H200, [setting])


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize(("engine", "fewest"), [("vllm", 30), ("weft", 40)])
def test_128_gpus_in_two_seconds(engine: str, fewest: int, objective: Objective) -> None:
    machine = machine_named(engine, "a100-80g")
    start = time.process_time()
    found = plan(128, machine=machine, objective=objective)
    assert time.process_time() - start < 2.0
    assert len(found.ranked) > fewest


def test_experts_are_planned_with_expert_parallelism() -> None:
    found = plan(8, 8, model="qwen3-235b-a22b")
    assert any(candidate.layout.ep > 1 for candidate in found.ranked)


def commands(layout: Layout, model: str = "llama-3.1-70b", width: int = 4) -> dict[str, str]:
    found = launch_commands(load_spec(model), layout, width)
    return {item.engine: item.command for item in found}


def test_commands_carry_the_degrees() -> None:
    text = commands(Layout(tp=8, pp=2, nodes=4))
    assert text["weft"].startswith("weft run llama-3.1-70b --tp 8 --pp 2 --nnodes 4 --node-rank")
    assert "--tensor-parallel-size 8 --pipeline-parallel-size 2 --nnodes 4" in text["vllm"]
    assert "--headless" in text["vllm"]
    assert "--tp-size 8 --pp-size 2 --nnodes 4" in text["sglang"]
    assert "--nnodes 4 --nproc-per-node 4" in text["torchrun"]
    assert "srun --nodes 4 --ntasks-per-node 4" in text["slurm"]


def test_commands_of_replicas_and_experts() -> None:
    joined = commands(Layout(tp=4, ep=4, dp=2), "qwen3-30b-a3b", 8)
    assert "--standalone" in joined["torchrun"]
    assert (
        "--enable-expert-parallel  # 2 servers like this one, each on its own 4" in joined["vllm"]
    )
    assert "--ep-size 4" in joined["sglang"]
    assert "--data-parallel-size 2" in commands(Layout(tp=4, dp=2), width=8)["vllm"]
    nodes = commands(Layout(tp=2, dp=4, nodes=2))
    assert "--tp-size 2 --dp-size 2  # a server of its own on every node" in nodes["sglang"]
    spread = commands(Layout(tp=8, dp=2, nodes=4))
    assert "2 servers like this one, each on its own 2 nodes" in spread["sglang"]
    assert "--nnodes 2" in spread["sglang"]


def test_servers_are_told_how_many_requests_to_run_at_once() -> None:
    found = launch_commands(load_spec("llama-3.1-8b"), Layout(dp=2), 8, requests=96)
    text = {item.engine: item.command for item in found}
    assert "--max-num-seqs 96" in text["vllm"]
    assert "--max-running-requests 192" in text["sglang"]


def test_shared_positions_and_small_caches_are_in_the_commands() -> None:
    found = launch_commands(
        load_spec("deepseek-v3"), Layout(tp=8, dcp=4), 8, None, "float8_e4m3fn", tokens=100
    )
    text = {item.engine: item.command for item in found}
    assert "--decode-context-parallel-size 4" in text["vllm"]
    assert "--kv-cache-dtype fp8 --max-model-len 100" in text["vllm"]
    assert "--dcp-size 4" in text["sglang"]
    assert "--kv-cache-dtype fp8_e4m3" in text["sglang"]
    assert text["weft"] == text["torchrun"] == "(weft keeps its cache in the model's own type)"
    alone = launch_commands(load_spec("deepseek-v3"), Layout(tp=8, dcp=4), 8)
    assert alone[0].command == "(weft keeps whole positions on every rank)"


def test_caches_shared_by_position_hold_more_requests() -> None:
    """Ranks that would hold the same latents hold a share of the positions each."""
    found = api.plan(
        "deepseek-v3", 8, weights="fp8_block", objective="throughput", cache_dtype="float8_e4m3fn"
    )
    tokens = {
        item.layout.name: item.serving.memory.cache_limit_tokens
        for item in found.ranked
        if item.serving is not None
    }
    assert tokens["tp8xep8xdcp8"] == pytest.approx(8 * tokens["tp8xep8"], rel=1e-3)
    own = api.plan("deepseek-v3", 8, weights="fp8_block", engine="weft", objective="throughput")
    reasons = {item.name: item.reason for item in own.rejected}
    assert "keeps whole positions" in reasons["tp8xep8xdcp8"]
    assert found.find("tp8xep8xdcp8").layout.dcp == 8  # type: ignore[union-attr]


def test_what_an_engine_cannot_run_is_said() -> None:
    assert "no sequence parallelism" in commands(Layout(tp=4, sp=4))["vllm"]
    assert "no sequence parallelism" in commands(Layout(tp=4, sp=4))["sglang"]
    eight = launch_commands(load_spec("llama-3.1-70b"), Layout(tp=4), 4, FLOAT8)
    text = {item.engine: item.command for item in eight}
    assert text["weft"].endswith("--weights-dtype float8_e4m3fn")
    assert "--quantization fp8" in text["vllm"]
    assert "--quantization fp8" in text["sglang"]


@pytest.mark.parametrize(
    ("model", "layout", "width"),
    [
        ("llama-3.1-70b", Layout(tp=8, pp=2, nodes=4), 4),
        ("llama-3.1-70b", Layout(tp=4, sp=4), 8),
        ("llama-3.1-8b", Layout(), 8),
        ("llama-3.1-8b", Layout(dp=4, nodes=4), 1),
        ("qwen3-30b-a3b", Layout(tp=4, ep=4, dp=2), 8),
    ],
)
def test_our_own_command_lines_parse(model: str, layout: Layout, width: int) -> None:
    run = typer.main.get_command(app).get_command(click.Context(click.Command("weft")), "run")
    assert run is not None
    text = {
        engine: command.replace("$NODE_RANK", "0").replace("$HEAD", "node0")
        for engine, command in commands(layout, model, width).items()
    }
    for engine in ("weft", "torchrun", "slurm"):
        words = text[engine].split()
        arguments = words[words.index("weft") + 1 :]
        assert arguments.pop(0) == "run"
        parsed = run.make_context("run", list(arguments), resilient_parsing=False).params
        degrees = {name: parsed[name] for name in ("tp", "pp", "sp", "ep", "dp")}
        assert degrees == {name: getattr(layout, name) for name in degrees}
        assert parsed["nnodes"] == layout.nodes
        assert parsed["model"] == model
    launcher = get_args_parser().parse_args(text["torchrun"].split()[1:])
    assert launcher.nproc_per_node == str(min(width, layout.world_size))
    assert launcher.training_script == "weft"


def test_an_engine_without_sequence_parallelism_plans_without_it() -> None:
    found = plan()
    assert all(candidate.layout.sp == 1 for candidate in found.ranked)
    assert "--engine weft" in explain(found, "sp4").summary
    own = plan(machine=machine_named("weft", "h200-sxm"))
    assert any(candidate.layout.sp == 4 for candidate in own.ranked)


def test_experts_over_replicas_are_rejected_with_the_reason() -> None:
    found = plan(8, 8, model="qwen3-235b-a22b")
    assert "wait for each other" in explain(found, "dp2xtp4xep8").summary
    assert all(c.layout.tp % c.layout.ep == 0 for c in found.ranked)


def test_the_nearest_layout_is_named_where_no_layout_keeps_the_limits() -> None:
    fastest = min(candidate.ttft_ms for candidate in plan().ranked)
    with pytest.raises(LayoutError, match=f"TTFT {fastest:.0f} ms is above the limit of 1 ms"):
        plan(limits=Limits(ttft_ms=1.0))


def test_end_to_end_times_are_a_requests_in_a_server() -> None:
    best = plan(objective=Objective.THROUGHPUT).best
    steps = workload_named("chat").num_decode_steps
    assert best.e2e_ms == pytest.approx(best.ttft_ms + steps * best.tpot_ms)


def test_the_report_reads_plan_and_prediction() -> None:
    found = plan()
    for value in (found.to_dict(), found.best.prediction.to_dict()):
        read = report_of([document(json.loads(json.dumps(value)), "plan.json")])
        assert read.sections
