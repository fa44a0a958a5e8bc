"""A server under load: limits, laws of queues, and the cache's bound."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import WorkloadError
from weft.prediction.latency import predict_latency
from weft.prediction.machines import machine_named
from weft.prediction.serving import Serving, serve_at_concurrency, serve_at_rate
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload

H200 = machine_named("vllm", "h200-sxm")
SPEC = load_spec("llama-3.1-8b")


def serve(layout: str = "tp2", clients: int = 8, prompt: int = 1024, decode: int = 256) -> Serving:
    load = Workload(prompt_tokens=prompt, decode_tokens=decode, batch=clients)
    return serve_at_concurrency(SPEC, Layout.parse(layout), load, H200)


def test_one_client_decodes_as_one_batch_does_but_for_the_server() -> None:
    load = Workload(prompt_tokens=1024, decode_tokens=256, batch=1)
    alone = predict_latency(SPEC, Layout.parse("tp2"), load, H200).tpot_ms.value
    profile = H200.profile
    server_ms = (profile.server_step_us.value + profile.server_sequence_us.value) * 1e-3
    assert serve(clients=1).tpot_ms.value == pytest.approx(alone + server_ms, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(
    layout=st.sampled_from(["1", "tp2", "pp2", "tp2xpp2", "dp2"]),
    clients=st.integers(2, 200),
    prompt=st.integers(16, 8192),
    decode=st.integers(16, 4096),
)
def test_littles_law_and_order(layout: str, clients: int, prompt: int, decode: int) -> None:
    serving = serve(layout, clients, prompt, decode)
    time_ms = serving.ttft_ms.value + serving.tpot_ms.value * (decode - 1)
    assert serving.running <= serving.concurrency
    assert serving.tokens_per_s == pytest.approx(serving.requests_per_s * decode)
    # Requests in the system are rate x time (the wait for other prompts is left out of the rate).
    assert serving.requests_per_s * time_ms * 1e-3 == pytest.approx(clients, rel=0.3)
    more = serve(layout, 2 * clients, prompt, decode)
    assert more.tpot_ms.value >= serving.tpot_ms.value * (1 - 1e-9)
    assert more.ttft_ms.value >= serving.ttft_ms.value * (1 - 1e-9)


def test_what_the_cache_cannot_hold_waits() -> None:
    few = serve("1", 8, 2048, 2048)
    many = serve("1", 2000, 2048, 2048)
    assert few.running == few.concurrency
    assert many.running < many.concurrency
    assert many.ttft_ms.value > 100 * few.ttft_ms.value


def test_a_request_larger_than_the_cache_is_refused() -> None:
    spec = load_spec("llama-3.1-70b")
    load = Workload(prompt_tokens=1024, decode_tokens=16, batch=1)
    with pytest.raises(WorkloadError, match="use more GPUs"):
        serve_at_concurrency(spec, Layout(), load, H200)


def test_a_rate_is_kept_or_refused() -> None:
    load = Workload(prompt_tokens=1024, decode_tokens=256, batch=1)
    layout = Layout.parse("tp2")
    serving = serve_at_rate(SPEC, layout, load, H200, 10.0)
    assert serving is not None
    assert serving.requests_per_s == pytest.approx(10.0, rel=0.01)
    assert serve_at_rate(SPEC, layout, load, H200, 1e6) is None
    with pytest.raises(WorkloadError, match="--rate 0"):
        serve_at_rate(SPEC, layout, load, H200, 0.0)
