"""Plans: the space, what is rejected and why, ranking, ties, what-if and command lines."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft import report
from weft.errors import LayoutError, UserError, WorkloadError
from weft.planning.explain import explain
from weft.planning.launch_commands import launch_commands
from weft.planning.objective import Limits, Objective, Question
from weft.planning.planner import Plan, make_plan
from weft.planning.space import Cluster, layouts
from weft.planning.what_if import with_settings
from weft.prediction.machines import machine_named
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
    json.dumps(found.to_json())


def test_one_gpu_does_not_hold_405b() -> None:
    with pytest.raises(LayoutError, match=r"weights .* of .* GB.*more --gpus"):
        plan(4, model="llama-3.1-405b")


def test_limits_reject_with_the_numbers_and_name_the_option() -> None:
    found = plan(limits=Limits(tpot_ms=16.0))
    assert all(candidate.tpot_ms <= 16.0 for candidate in found.ranked)
    reasons = {item.name: item.reason for item in found.rejected}
    assert "above the limit of 16 ms" in reasons["tp2xpp2"]
    with pytest.raises(LayoutError, match="relax --ttft or --tpot"):
        plan(limits=Limits(ttft_ms=1.0))
    with pytest.raises(WorkloadError, match="--tpot -1"):
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
    page = report.render(report.report_of([report.document(found.to_json(), "plan")]))
    assert "Pareto front" in page


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
    inputs = after.best.prediction.to_json()["provenance"]
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


def test_128_gpus_in_two_seconds() -> None:
    for objective in Objective:
        start = time.process_time()
        found = plan(128, machine=A100, objective=objective)
        assert time.process_time() - start < 2.0
        assert len(found.ranked) > 40


def test_experts_are_planned_with_expert_parallelism() -> None:
    found = plan(8, 8, model="qwen3-235b-a22b")
    assert any(candidate.layout.ep > 1 for candidate in found.ranked)


def test_commands_carry_the_degrees() -> None:
    spec = load_spec("llama-3.1-70b")
    layout = Layout(tp=8, pp=2, nodes=4)
    text = {item.engine: item.command for item in launch_commands(spec, layout, 4)}
    assert text["weft"] == "weft run llama-3.1-70b --tp 8 --pp 2"
    assert "--tensor-parallel-size 8 --pipeline-parallel-size 2" in text["vllm"]
    assert "--tp-size 8 --pp-size 2 --nnodes 4" in text["sglang"]
    assert "--nnodes 4 --nproc-per-node 4" in text["torchrun"]
    assert "srun --nodes 4 --ntasks-per-node 4" in text["slurm"]
    alone = launch_commands(load_spec("qwen3-30b-a3b"), Layout(tp=4, ep=4, sp=1, dp=2), 8)
    joined = " ".join(item.command for item in alone)
    assert "--standalone" in joined
    assert "--enable-expert-parallel" in joined
    assert "--ep-size 4" in joined
    assert "enable_sp" in launch_commands(spec, Layout(tp=4, sp=4), 4)[1].command


def test_the_report_reads_plan_and_prediction() -> None:
    found = plan()
    for value in (found.to_json(), found.best.prediction.to_json()):
        read = report_of([document(json.loads(json.dumps(value)), "plan.json")])
        assert read.sections
