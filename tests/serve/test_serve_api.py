"""The HTTP layer through the official client, with an engine that repeats the prompt."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from fake_engine import FakeEngine
from serve_harness import Harness, call, serving
from weft.serve.engine_client import EngineLimits


@pytest.fixture(scope="module")
def server() -> Iterator[Harness]:
    with serving() as harness:
        yield harness


@pytest.fixture(scope="module")
def client(server: Harness) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


# The engine repeats the prompt's tokens: begin-of-text (no character), then its bytes.


def test_completion(client):
    answer = client.completions.create(model="embedded", prompt="abcdef", max_tokens=4)
    assert answer.choices[0].text == "abc"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("n", [1, 3])
def test_usage_tells_the_tokens_found_in_the_cache(n):
    asked = {"model": "embedded", "prompt": ["abcdef", "ghijkl"], "max_tokens": 3, "n": n}
    with (
        serving(FakeEngine(num_cached=4)) as own,
        openai.OpenAI(base_url=f"{own.url}/v1", api_key="none") as client,
    ):
        whole = client.completions.create(**asked)
        counting = {"include_usage": True}
        *_, last = client.completions.create(**asked, stream=True, stream_options=counting)
    for usage in (whole.usage, last.usage):
        assert usage.prompt_tokens_details.cached_tokens == 8
        assert usage.prompt_tokens == 14


def test_every_form_of_prompt_and_several_choices(client):
    for prompt in ("ab", [256, 97, 98], ["ab"], [[256, 97, 98]]):
        answer = client.completions.create(model="embedded", prompt=prompt, max_tokens=3)
        assert [choice.text for choice in answer.choices] == ["ab"]
    answer = client.completions.create(model="embedded", prompt=["ab", "cd"], max_tokens=3, n=2)
    assert [(c.index, c.text) for c in answer.choices] == [
        (0, "ab"),
        (1, "ab"),
        (2, "cd"),
        (3, "cd"),
    ]
    assert answer.usage.completion_tokens == 12


def test_chat(client):
    answer = client.chat.completions.create(
        model="embedded",
        messages=[
            {"role": "system", "content": "be"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ],
        max_completion_tokens=11,
    )
    assert answer.choices[0].message.content == "system: be"
    assert answer.choices[0].message.role == "assistant"


def test_a_stream_says_the_same_as_a_whole_answer(client):
    stream = client.completions.create(
        model="embedded",
        prompt="grüße, 世界 🙂",
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    chunks = list(stream)
    whole = client.completions.create(model="embedded", prompt="grüße, 世界 🙂", max_tokens=20)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert "\N{REPLACEMENT CHARACTER}" not in whole.choices[0].text[:-1]
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 20
    assert chunks[-1].choices == []


def test_chat_stream_with_choices(client):
    texts = {0: "", 1: "", 2: ""}
    reasons = {}
    for chunk in client.chat.completions.create(
        model="embedded",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=8,
        n=3,
        stream=True,
    ):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason
        assert chunk.usage is None
    assert set(texts.values()) == {"user: x"}
    assert set(reasons.values()) == {"length"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", ["cde", ["zz", "cde"]])
def test_stop_strings_cut_across_tokens(client, server, stop, stream):
    before = len(server.engine.aborted)
    answer = client.completions.create(
        model="embedded", prompt="abcdef", max_tokens=40, stop=stop, stream=stream
    )
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ab"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len(server.engine.aborted) == before + 1


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_beside_the_text(server, stream):
    body = {"model": "embedded", "prompt": [7, 8, 9], "max_tokens": 4, "return_token_ids": True}
    status, answer = call(server, "POST", "/v1/completions", body | {"stream": stream})
    assert status == 200
    if stream:
        events = answer["text"].decode().split("\n\n")[:-2]
        choices = [json.loads(event[6:])["choices"][0] for event in events]
        assert [token for choice in choices for token in choice["token_ids"]] == [7, 8, 9, 7]
    else:
        assert answer["choices"][0]["token_ids"] == [7, 8, 9, 7]


def test_stop_tokens(client):
    answer = client.completions.create(
        model="embedded", prompt="abc", max_tokens=9, extra_body={"stop_token_ids": [98]}
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a", "stop")


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "embedded"
    assert client.models.retrieve("embedded").id == "embedded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, None),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"prompt": ""}, None),
        ({"prompt": []}, "prompt"),
        ({"prompt": [400]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"logit_bias": {"01": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0661": 1}}, "logit_bias"),
        ({"stop_token_ids": [999999]}, "stop_token_ids"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logprobs": 6}, "logprobs"),
        ({"top_logprobs": 2}, None),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"unknown": 1}, "unknown"),
        ({"prompt": ["a"] * 128, "n": 128}, None),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"stream_options": {"include_usage": True}}, None),
        ({"seed": 1 << 70}, "seed"),
    ],
)
def test_wrong_fields(server, fields, param):
    body = {"model": "embedded", "prompt": "x"} | fields
    status, answer = call(server, "POST", "/v1/completions", body)
    if fields == {"prompt": ""}:  # begin-of-text alone is a prompt
        assert status == 200
        return
    assert status == 400, answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert not re.search(r"[\[\]()]|function|constrained", answer["error"]["param"] or "")
    assert "Value error" not in answer["error"]["message"]
    if param is not None:
        assert answer["error"]["param"].split(".")[0] == param


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([[1], []], "prompt.1: List should have at least 1 item"),
        ([[1], ["a"]], "prompt.1.0: Input should be a valid integer"),
        ([], "prompt: List should have at least 1 item"),
        ([1, "a"], "prompt.1: Input should be a valid integer"),
        (["a", [1]], "prompt.1: Input should be a valid string"),
        (5, "prompt: Input should be a valid string"),
    ],
)
def test_a_wrong_prompt_is_told_of_the_form_that_was_meant(server, prompt, message):
    body = {"model": "embedded", "prompt": prompt}
    status, answer = call(server, "POST", "/v1/completions", body)
    assert status == 400
    assert answer["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "best_of": 1},
        {"repetition_penalty": 1.0, "logprobs": None, "echo": False, "suffix": None, "user": "u"},
        {"seed": 7, "top_k": -1, "top_p": 0.5, "temperature": 0, "ignore_eos": True},
        {"n": None, "stop": None, "stream": None, "max_tokens": None},
        {"skip_special_tokens": True, "use_beam_search": False, "length_penalty": 1.0},
        {"add_special_tokens": True, "guided_json": None, "tool_choice": None},
        {"bad_words": [], "truncate_prompt_tokens": None, "priority": 0, "request_id": "a"},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(server, fields):
    body = {"model": "embedded", "prompt": "x"} | fields
    assert call(server, "POST", "/v1/completions", body)[0] == 200


def test_a_clients_own_message_goes_into_the_next_request(server, client):
    """Whole, with the fields that the client's type has and the answer had not."""
    turns: list[Any] = [{"role": "user", "content": "a"}]
    asked = {"model": "embedded", "max_tokens": 2}
    answer = client.chat.completions.create(messages=turns, **asked)
    turns += [answer.choices[0].message.model_dump(), {"role": "user", "content": "b"}]
    assert "tool_calls" in turns[1]
    assert client.chat.completions.create(messages=turns, **asked).choices[0].message.content
    status, answer = call(
        server,
        "POST",
        "/v1/chat/completions",
        asked | {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]},
    )
    assert (status, answer["error"]["param"]) == (400, "messages.0.tool_calls")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": ["x", ""]}, "stop", "must not be empty"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream is true"),
        ({"max_tokens": 0}, "max_tokens", "echo"),
        ({"prompt": ["a"] * 100, "n": 2}, "n", "200 answers"),
        ({"max_tokens": True}, "max_tokens", "must not be true or false"),
        ({"temperature": False}, "temperature", "must not be true or false"),
    ],
)
def test_a_refusal_names_the_field_and_the_reason(server, fields, param, words):
    body = {"model": "embedded", "prompt": "x"} | fields
    status, answer = call(server, "POST", "/v1/completions", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert words in answer["error"]["message"]


def test_a_body_of_another_content_type_is_told_of_the_right_one(server):
    """What curl sends where the header is forgotten."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    body = json.dumps({"model": "embedded", "prompt": "x"})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/v1/completions", body, kind)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert "content-type: application/json" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nope", None, 404),
        ("GET", "/v1/completions", None, 405),
        ("POST", "/v1/completions", b"{broken", 400),
        ("POST", "/v1/completions", b"", 400),
        ("POST", "/v1/completions", b"[" * 200_000, 400),
        ("POST", "/v1/completions", b'{"model":"embedded","prompt":"\\ud800"}', 400),
        ("POST", "/v1/completions", b"\xff\xfe", 400),
        ("POST", "/v1/completions", b'{"model":"embedded","max_tokens":NaN,"prompt":"x"}', 400),
        ("POST", "/v1/completions", b'{"max_tokens":' + b"9" * 5000 + b"}", 400),
        ("POST", "/v1/completions", {"model": "other", "prompt": "x"}, 404),
        ("POST", "/v1/chat/completions", {"model": "embedded", "messages": []}, 400),
    ],
)
def test_every_refusal_has_the_error_shape(server, method, path, body, status):
    got, answer = call(server, method, path, body)
    assert got == status, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_health_and_metrics(server):
    for path in ("/health", "/ready"):
        assert call(server, "GET", path) == (200, {"status": "ready"})
    call(server, "POST", "/v1/completions", {"model": "embedded", "prompt": "x", "max_tokens": 3})
    text = call(server, "GET", "/metrics")[1]["text"].decode()
    for name in (
        "weft_time_to_first_token_seconds_count",
        "weft_time_per_output_token_seconds_count",
        'weft_requests_total{outcome="completed"}',
        "weft_output_tokens_total",
        "weft_engine_cache_use",
        "weft_engine_communication_share",
        "weft_engine_waiting",
        "weft_engine_ready 1.0",
        "weft_prefix_asked_tokens_total",
        "weft_prefix_hit_tokens_total",
    ):
        assert name in text


def test_api_key():
    with serving(api_key="secret") as server:
        body = {"model": "embedded", "prompt": "x"}
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            status, answer = call(server, "POST", "/v1/completions", body, **headers)
            assert status == 401
            assert answer["error"]["type"] == "authentication_error"
        for scheme in ("Bearer", "bearer", "BEARER"):
            good = {"Authorization": f"{scheme} secret"}
            assert call(server, "POST", "/v1/completions", body, **good)[0] == 200
        assert call(server, "GET", "/ready")[0] == 200


def test_limits_of_body_prompt_and_queue():
    limits = EngineLimits(vocab_size=320, max_tokens=100, max_open=2)
    engine = FakeEngine(limits=limits, step_s=0.02)
    with serving(engine, max_body_bytes=1000, max_prompt_tokens=50) as server:
        body = {"model": "embedded", "prompt": "x" * 2000}
        assert call(server, "POST", "/v1/completions", body)[0] == 413
        assert post_chunked(server.port, b"x" * 2000).startswith(b"HTTP/1.1 413")
        status, answer = call(server, "POST", "/v1/completions", body | {"prompt": "x" * 60})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        body = {"model": "embedded", "prompt": "x" * 40, "max_tokens": 60}
        status, answer = call(server, "POST", "/v1/completions", body)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        body = {"model": "embedded", "prompt": "x", "n": 3}
        status, answer = call(server, "POST", "/v1/completions", body)
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert call(server, "POST", "/v1/completions", body | {"n": 2})[0] == 200


def post_chunked(port: int, body: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/json\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        )
        return sock.recv(4096)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_slot_within_one_step(stream):
    with serving(FakeEngine(step_s=0.25)) as server:
        body = {"model": "embedded", "prompt": "x", "max_tokens": 4000, "stream": stream, "n": 2}
        sock = socket.create_connection(("127.0.0.1", server.port), 20)
        data = json.dumps(body).encode()
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
        )
        wait_until(lambda: server.engine.stats.running == 2)
        steps = server.engine.stats.steps
        sock.close()
        wait_until(lambda: server.engine.stats.running == 0)
        assert server.engine.stats.steps <= steps + 1
        assert sorted(server.engine.aborted) == [0, 1]
        assert outcomes(server) == {"cancelled": 1}


def outcomes(server: Harness) -> dict[str, int]:
    text = call(server, "GET", "/metrics")[1]["text"].decode()
    found = re.findall(r'weft_requests_total{outcome="(\w+)"} (\S+)', text)
    return {name: int(float(value)) for name, value in found}


def test_what_was_served_is_counted_as_completed():
    with serving(FakeEngine()) as server:
        body = {"model": "embedded", "prompt": "abcdef", "max_tokens": 9}
        for fields in ({}, {"stop": "c"}, {"stream": True}, {"n": 3, "stop": ["b"]}):
            assert call(server, "POST", "/v1/completions", body | fields)[0] == 200
        assert outcomes(server) == {"completed": 4}


def wait_until(condition: Any, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_lost_rank_is_a_clear_error():
    with serving(FakeEngine(step_s=0.02)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        body = {"model": "embedded", "prompt": "x", "max_tokens": 4000, "stream": True}
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        response.readline()
        server.loop.call_soon_threadsafe(server.engine.lose_rank, "rank 1 was killed by SIGKILL")
        rest = response.read().decode()
        assert "rank 1 was killed by SIGKILL" in rest
        assert rest.endswith("data: [DONE]\n\n")
        connection.close()
        status, answer = call(server, "GET", "/ready")
        assert (status, answer["reason"]) == (503, "rank 1 was killed by SIGKILL")
        status, answer = call(server, "POST", "/v1/completions", body)
        assert (status, answer["error"]["code"]) == (503, "engine_unavailable")


def test_shutdown_ends_open_streams_within_its_time():
    with serving(FakeEngine(step_s=0.02)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        body = {"model": "embedded", "prompt": "x", "max_tokens": 4000, "stream": True}
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        connection.getresponse().readline()
        started = time.monotonic()
    assert time.monotonic() - started < 10
    connection.close()


def test_the_profile_is_started_and_stopped_once(server):
    assert call(server, "POST", "/stop_profile", {})[0] == 409
    assert call(server, "POST", "/start_profile", {})[0] == 200
    assert call(server, "POST", "/start_profile", {})[0] == 409
    status, answer = call(server, "POST", "/stop_profile", {})
    assert (status, answer["schema"]) == (200, "weft.serve.profile/1")
    assert answer["replicas"][0][0]["phase"] == "decode"
