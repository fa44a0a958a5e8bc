"""A simulated server: the step clock, laws of queues, and the cache's bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import FileFormatError, WorkloadError
from weft.prediction.latency import predict_latency
from weft.prediction.machines import machine_named
from weft.prediction.operators import StepLoad
from weft.prediction.serving import Serving, predict_serving
from weft.prediction.simulation import Server, Stage, Visit
from weft.prediction.simulation import serve as serve_all
from weft.prediction.traffic import Traffic, read_trace
from weft.scheduling.policy import Policy
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

H200 = machine_named("vllm", "h200-sxm")
SPEC = load_spec("llama-3.1-8b")


def serve(
    layout: str = "tp2", clients: int = 8, prompt: int = 1024, decode: int = 256, requests: int = 40
) -> Serving:
    load = Workload(prompt_tokens=prompt, decode_tokens=decode)
    traffic = Traffic(workload=load, concurrency=clients, requests=requests)
    return predict_serving(SPEC, Layout.parse(layout), traffic, H200)


def test_one_client_decodes_as_one_batch_does_but_for_the_server() -> None:
    load = Workload(prompt_tokens=1024, decode_tokens=256, batch=1)
    alone = predict_latency(SPEC, Layout.parse("tp2"), load, H200).tpot_ms.value
    profile = H200.profile
    server_ms = (profile.server_step_us.value + profile.server_sequence_us.value) * 1e-3
    assert serve(clients=1).tpot_ms.value == pytest.approx(alone + server_ms, rel=0.01)


POLICIES = st.builds(
    Policy,
    max_tokens=st.integers(1, 64),
    max_requests=st.integers(1, 9),
    counts_decode=st.booleans(),
    mixes=st.booleans(),
    admission=st.sampled_from(["present", "whole"]),
)
VISITS = st.lists(
    st.builds(
        Visit,
        prompt=st.integers(1, 60),
        decode=st.integers(1, 30),
        arrival_us=st.floats(0, 200),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    policy=POLICIES, visits=VISITS, clients=st.none() | st.integers(1, 5), room=st.integers(90, 300)
)
def test_every_request_is_answered_and_every_token_has_its_step(
    policy: Policy, visits: list[Visit], clients: int | None, room: int
) -> None:
    visits.sort(key=lambda visit: visit.arrival_us)
    steps: list[tuple[StepLoad, int]] = []
    server = Server(
        policy=policy,
        step_us=lambda step: 1.0 + step.rows,
        cache_tokens=room,
        watch=lambda step, count: steps.append((step, count)),
    )
    serve_all([Stage(servers=[server])], visits, clients)
    assert all(v.arrival_us < v.first_us <= v.end_us for v in visits)
    decoded = sum(step.decode_sequences * count for step, count in steps)
    prompts = sum(step.prefill_tokens * count for step, count in steps)
    if not server.preemptions:
        assert decoded == sum(v.decode - 1 for v in visits)
        assert prompts == sum(v.prompt for v in visits)
    for step, _ in steps:
        assert step.decode_sequences <= policy.max_requests
        if policy.mixes and policy.counts_decode and step.prefill_tokens:
            assert step.rows <= policy.max_tokens
        if not policy.mixes:
            assert not (step.prefill_tokens and step.decode_sequences)
    assert server.most_held <= room + len(visits)
    assert sum(count * (1 + step.rows) for step, count in steps) == pytest.approx(server.busy_us)


def test_a_stretch_is_the_same_as_its_steps() -> None:
    """A clock with an arrival in every step leaves no stretch; without, the times are equal."""
    policy = Policy(max_tokens=64, max_requests=8)

    def run(extra: list[Visit]) -> Visit:
        first = Visit(prompt=10, decode=50)
        server = Server(
            policy=policy,
            step_us=lambda step: (
                10.0 + step.decode_context * 0.01 if step.decode_sequences else 5.0
            ),
            cache_tokens=10_000,
        )
        serve_all([Stage(servers=[server])], [first, *extra])
        return first

    alone = run([])
    expected = 5.0 + sum(10.0 + (10 + token) * 0.01 for token in range(1, 50))
    assert alone.end_us == pytest.approx(expected)


def test_a_closed_loop_keeps_littles_law() -> None:
    serving = serve("tp2", 16, 512, 64, requests=400)
    inside = serving.requests_per_s * serving.e2e_ms.value * 1e-3
    assert inside == pytest.approx(16, rel=0.1)
    assert serving.ttft_ms.p50 <= serving.ttft_ms.p99
    assert serving.to_dict()["ttft_ms"].keys() == {"value", "low", "high", "p50", "p99"}


def test_what_the_cache_cannot_hold_waits() -> None:
    few = serve("1", 8, 2048, 256, requests=16)
    many = serve("1", 1200, 2048, 256, requests=1200)
    assert few.running == 8
    assert many.running < 1200
    assert many.ttft_ms.value > 10 * few.ttft_ms.value
    assert many.memory.fits


def test_a_request_larger_than_the_cache_is_refused() -> None:
    spec = load_spec("llama-3.1-70b")
    traffic = Traffic(workload=Workload(prompt_tokens=1024, decode_tokens=16), concurrency=1)
    with pytest.raises(WorkloadError, match="use more GPUs"):
        predict_serving(spec, Layout(), traffic, H200)


def at_rate(rate: float, burst: int = 1) -> Serving:
    load = Workload(prompt_tokens=512, decode_tokens=64)
    traffic = Traffic(workload=load, rate=rate, burst=burst, requests=300)
    return predict_serving(SPEC, Layout.parse("tp2"), traffic, H200)


def test_a_rate_is_kept_or_refused() -> None:
    assert at_rate(10.0).requests_per_s == pytest.approx(10.0, rel=0.15)
    with pytest.raises(WorkloadError, match="`rate` 1e"):
        at_rate(1e6)
    with pytest.raises(WorkloadError, match="`rate` 0"):
        at_rate(0.0)


def test_bursts_wait_longer_than_poisson() -> None:
    assert at_rate(10.0, burst=20).ttft_ms.p99 > at_rate(10.0).ttft_ms.p99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"concurrency": 0}, "`concurrency` 0"),
        ({"concurrency": 1, "rate": 1.0}, "leave out"),
        ({}, "needs `concurrency`"),
        ({"concurrency": 1, "shortest": 0.0}, "`shortest`"),
        ({"rate": 1.0, "burst": 0}, "`burst` 0"),
    ],
)
def test_traffic_checks_itself(changes: dict[str, float], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        Traffic(workload=Workload(), **changes)  # type: ignore[arg-type]


TRACES = {
    "mooncake.jsonl": '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n'
    '{"timestamp": 27, "input_length": 1100, "output_length": 9, "hash_ids": [1, 2, 3]}\n',
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:17:03.9799600,600,5\n2023-11-16 18:17:04.0069600,1100,9\n",
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,600,5,605,x\n5.027,ChatGPT,1100,9,1109,x\n6,GPT-4,10,0,10,x\n",
}


@pytest.mark.parametrize("name", TRACES)
def test_traces_of_three_kinds(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(TRACES[name])
    first, second = read_trace(path)
    assert (first.prompt, first.decode, first.arrival_us) == (600, 5, 0.0)
    assert (second.prompt, second.decode) == (1100, 9)
    assert second.arrival_us == pytest.approx(27_000, abs=1)
    assert second.cached == (1024 if "mooncake" in name else 0)
    traffic = Traffic(workload=Workload(), trace=path, rate=1.0)
    served = predict_serving(SPEC, Layout.parse("tp2"), traffic, H200)
    assert json.dumps(served.to_dict())


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FileFormatError, match="`trace`"):
        read_trace(path)
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_trace(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"timestamp": 0, "input_length": -10, "output_length": 2}', "-10 tokens"),
        ('{"timestamp": NaN, "input_length": 10, "output_length": 2}', "a time is nan"),
        ("arrival,prompt\n0,10\n", "no column 'Response tokens'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n,5,5\n", "isoformat"),
    ],
)
def test_impossible_rows_of_a_trace_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=reason):
        read_trace(path)


def test_a_trace_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,8,2\n")
    assert [(visit.prompt, visit.decode) for visit in read_trace(path)] == [(8, 2)]


def test_a_prefix_is_cached_by_an_earlier_time_not_an_earlier_line(tmp_path: Path) -> None:
    rows = [
        {"timestamp": time, "input_length": 600, "output_length": 2, "hash_ids": [1, time]}
        for time in (9, 5)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n\n")
    assert [visit.cached for visit in read_trace(path)] == [0, 512]


@pytest.mark.parametrize("wrong", [{"concurrency": "5"}, {"concurrency": 2.5}, {"rate": "x"}])
def test_traffic_of_a_wrong_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError, match=r"must be a (whole )?number"):
        Traffic(workload=Workload(), **wrong)


def test_a_trace_with_a_request_beyond_the_models_positions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 200000, "output_length": 20}')
    with pytest.raises(WorkloadError, match=r"200000 . 20 tokens exceeds the 131072 positions"):
        predict_serving(SPEC, Layout(), Traffic(workload=Workload(), trace=path), H200)
