"""Servers that only prefill, replicas that share experts, drafts, and states beside caches."""

from __future__ import annotations

import pytest

from weft import api
from weft.cli import main
from weft.errors import LayoutError, UserError
from weft.prediction.machines import machine_named
from weft.prediction.operators import StepLoad
from weft.prediction.serving import Replica, Serving
from weft.prediction.serving_errors import error_ranges
from weft.prediction.simulation import Server, Stage, Visit, serve
from weft.scheduling.policy import Policy
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.workload import Workload

LOAD = Workload(prompt_tokens=1024, decode_tokens=128)
B200 = machine_named("sglang", "b200-sxm", weights="nvfp4")


def ask(layout: str, clients: int = 64, model: str = "llama-3.1-8b", **more: object) -> Serving:
    return api.predict_serving(
        model,
        Layout.parse(layout),
        LOAD,
        engine="vllm",
        accelerator="h200-sxm",
        concurrency=clients,
        requests=4 * clients,
        **more,  # type: ignore[arg-type]
    )


def test_prompts_on_other_servers_leave_decode_steps_alone() -> None:
    together = ask("dp2xtp2")
    apart = ask("tp2", prefill_layout=Layout(tp=2))
    assert apart.tpot_ms.value < 0.85 * together.tpot_ms.value
    assert apart.ttft_ms.value > together.ttft_ms.value
    assert apart.to_dict()["prefill_layout"] == "tp2"
    more = ask("tp2", prefill_layout=Layout(tp=2, dp=4))
    assert more.ttft_ms.value < 0.6 * apart.ttft_ms.value


def test_every_request_passes_both_stages_and_waits_for_its_cache() -> None:
    policy = Policy(max_tokens=64, max_requests=8)
    prefill, decode = (
        Server(policy=policy, step_us=lambda step: 10.0, cache_tokens=1000) for _ in range(2)
    )
    prefill.prefills_only = True
    visits = [Visit(prompt=32, decode=5, arrival_us=3.0 * index) for index in range(9)]
    stages = [Stage(servers=[prefill]), Stage(servers=[decode], delay_us=lambda visit: 100.0)]
    serve(stages, visits)
    for visit in visits:
        assert visit.produced == visit.decode
        assert visit.end_us >= visit.first_us + 100.0 + 4 * 10.0
    assert prefill.busy_us == pytest.approx(10.0 * 5)
    assert decode.prompt_us == 0.0


def test_the_caches_way_grows_with_the_prompt_and_falls_with_the_ranks() -> None:
    spec = load_spec("llama-3.1-8b")
    one, two = (Replica(spec, Layout(tp=tp), machine_named("vllm", "h200-sxm")) for tp in (1, 2))
    short, long = Visit(prompt=1000, decode=1), Visit(prompt=8000, decode=1)
    assert one.transfer_us(long) > 6 * one.transfer_us(short)
    assert two.transfer_us(long) < 0.6 * one.transfer_us(long)


def test_replicas_that_share_experts_step_together() -> None:
    spec = load_spec("deepseek-v3")
    shared = Replica(spec, Layout(dp=8, ep=8), B200)
    assert (shared.sharing, shared.servers) == (8, 1)
    step = StepLoad(decode_sequences=64.0, decode_context=1024.0)
    alone = StepLoad(decode_sequences=8.0, decode_context=1024.0)
    assert shared.step_us(step) > shared.step_us(alone)
    prompt = StepLoad(prefill_tokens=4096.0, prefill_sequences=1.0, prefill_context=2048.0)
    eight = StepLoad(prefill_tokens=8 * 4096.0, prefill_sequences=8.0, prefill_context=2048.0)
    assert shared.step_us(eight) < 2.5 * shared.step_us(prompt)
    assert Replica(spec, Layout(dp=16, ep=8), B200).servers == 2


def test_experts_over_replicas_of_pipelines_are_refused() -> None:
    with pytest.raises(LayoutError, match="`ep` 8: times are predicted"):
        ask("dp4xtp2xpp2xep8", model="qwen3-30b-a3b")


def test_accepted_drafts_shorten_the_time_of_a_token_and_refused_ones_lengthen_it() -> None:
    plain = ask("tp2", 4).tpot_ms.value
    kept, lost = (
        ask("tp2", 4, speculation=Speculation(method="mtp", num_drafts=2, accepted=n)).tpot_ms.value
        for n in (2.0, 0.0)
    )
    assert kept < 0.6 * plain < plain < lost


def test_a_batch_has_no_times_with_drafts_or_other_ranks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for more in (["--prefill-layout", "1"], ["--speculate", "ngram:2"]):
        words = ["predict", "llama-3.1-8b", "--accelerator", "h200-sxm", *more]
        assert main.run(words) == 2
        assert "say --concurrency" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prefill", "message"),
    [(Layout(dp=1000), "1000 servers that differ"), (Layout(tp=1), "layout 1: the cache holds")],
)
def test_pools_that_cannot_be_are_named(prefill: Layout, message: str) -> None:
    model = "llama-3.1-8b" if prefill.dp > 1 else "llama-3.1-70b"
    with pytest.raises(UserError, match=message):
        ask("tp4", 4, model, prefill_layout=prefill)


def test_a_state_takes_cache_whatever_the_length() -> None:
    replica = Replica(
        load_spec("qwen3-next-80b-a3b"), Layout(tp=4), machine_named("vllm", "h200-sxm")
    )
    server = replica.stage(1, None).servers[0]
    assert server.state_tokens > 500
    policy = Policy(max_tokens=64, max_requests=8)
    few = Server(policy=policy, step_us=lambda step: 1.0, cache_tokens=300, state_tokens=100)
    visits = [Visit(prompt=10, decode=10) for _ in range(6)]
    serve([Stage(servers=[few])], visits)
    assert few.most_running == 2


def test_shared_positions_are_read_and_held_in_shares() -> None:
    """dcp: a rank reads its share of the positions, and pays for queries and sums in between."""
    spec, machine = load_spec("deepseek-v3"), machine_named("vllm", "h200-sxm", weights="fp8_block")
    long = StepLoad(decode_sequences=16, decode_context=100_000)
    whole, shared = (Replica(spec, Layout(tp=8, dcp=dcp), machine) for dcp in (1, 8))
    one, eighth = (item.timer.stages(long)[0] for item in (whole, shared))
    assert eighth.parts.attention_us < one.parts.attention_us
    assert shared.cache_tokens == pytest.approx(8 * whole.cache_tokens, rel=1e-4)
    groups = {(item.group, item.op): item.count for item in eighth.collectives}
    assert groups["dcp8", "all_gather"] == 2 * spec.num_layers / 2
    assert groups["dcp8", "reduce_scatter"] == spec.num_layers
    prompt = StepLoad(prefill_tokens=100, prefill_sequences=1, prefill_context=50)
    first = shared.timer.stages(prompt)[0].collectives
    assert not [item for item in first if item.group == "dcp8"]


def test_caches_in_eight_bits_hold_twice_and_are_read_in_half_the_time() -> None:
    spec = load_spec("llama-3.1-8b")
    wide, small = (
        Replica(spec, Layout(), machine_named("vllm", "h200-sxm", cache_dtype=dtype))
        for dtype in (None, "float8_e4m3fn")
    )
    assert small.cache_tokens == pytest.approx(2 * wide.cache_tokens, rel=1e-4)
    full = StepLoad(decode_sequences=64, decode_context=16_000)
    slow, quick = (item.timer.stages(full)[0].parts.attention_us for item in (wide, small))
    assert 0.4 < quick / slow < 0.95
    plain = wide.timer.stages(full)[0].parts
    assert small.timer.stages(full)[0].parts.matmul_us == plain.matmul_us


def test_sglangs_replicas_put_their_rows_together() -> None:
    found = Replica(
        load_spec("deepseek-v3"), Layout(dp=8, ep=8), machine_named("sglang", "h200-sxm")
    )
    step = found.timer.stages(StepLoad(decode_sequences=4, decode_context=100))[0]
    assert {item.op for item in step.collectives} == {"all_reduce", "all_gather"}
    assert {item.group for item in step.collectives} == {"ep8"}


def test_intervals_of_servers_are_those_of_their_engine() -> None:
    ttft, tpot = error_ranges("vllm")
    found = ask("tp2")
    assert found.tpot_ms.mean == tpot.around(found.tpot_ms.value)
    assert found.ttft_ms.mean == ttft.around(found.ttft_ms.value)
    assert tpot.low < 1 < tpot.high < ttft.high
    assert error_ranges("mine") == (ttft, tpot)
    assert error_ranges("weft") != (ttft, tpot)
