"""Hostile requests: never a 5xx, never a crash, every refusal in OpenAI's shape.

Most are made by schemathesis from the server's own OpenAPI description, right and wrong ones;
others break a valid body, its bytes or the HTTP around it. ``benchmarks/serve_hostile.py`` sends
10,000 of them to a real engine, through ``WEFT_HOSTILE_URL`` and ``WEFT_HOSTILE_EXAMPLES``.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fake_engine import FakeEngine
from serve_harness import serving

EXAMPLES = int(os.environ.get("WEFT_HOSTILE_EXAMPLES", "240"))
URL = os.environ.get("WEFT_HOSTILE_URL")
COUNTS = os.environ.get("WEFT_HOSTILE_COUNTS")
CHECKS = (
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
MOST_TOKENS = 24
GENERATIONS = ("/v1/completions", "/v1/chat/completions")
VALID: dict[str, dict[str, Any]] = {
    GENERATIONS[0]: {"model": "embedded", "prompt": "abc", "max_tokens": 3},
    GENERATIONS[1]: {
        "model": "embedded",
        "messages": [{"role": "user", "content": "abc"}],
        "max_tokens": 3,
    },
}
EACH = settings(deadline=None, suppress_health_check=list(HealthCheck))

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 1 << 31, 1 << 63, 1 << 64, 10**400, 1e308, -0.0]),
)
texts = st.one_of(
    st.text(max_size=30), st.sampled_from(["", "\0", "\x7f", "🙂", "{{7*7}}", "</s>"])
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if URL:
        yield URL
        return
    with serving(FakeEngine(step_s=0.0)) as harness:
        yield harness.url


@pytest.fixture(scope="module")
def description(url: str) -> dict[str, Any]:
    return json.loads(read(url, "/openapi.json"))


def read(url: str, path: str) -> str:
    with urlopen(url + path, timeout=20) as response:
        return response.read().decode()


@pytest.fixture(scope="module")
def operations(description: dict[str, Any]) -> list[Any]:
    """Every operation as described, and the generations again for the model that is served.

    Of these the right requests reach the engine; they ask for few tokens.
    """
    narrow = json.loads(json.dumps(description))
    for name in ("CompletionBody", "ChatBody"):
        properties = narrow["components"]["schemas"][name]["properties"]
        properties["model"] = {"const": "embedded"}
        few = {"type": "integer", "minimum": 1, "maximum": MOST_TOKENS}
        properties["n"] = few | {"maximum": 3}
        narrow["components"]["schemas"][name]["required"].append("max_tokens")
        for field in ("max_tokens", "max_completion_tokens"):
            if field in properties:
                properties[field] = few
    every = [one.ok() for one in schemathesis.openapi.from_dict(description).get_all_operations()]
    served = schemathesis.openapi.from_dict(narrow)
    return [one for one in every if one.path not in GENERATIONS] + [
        schema[path]["POST"]
        for schema in (served, served, served, schemathesis.openapi.from_dict(description))
        for path in GENERATIONS
    ]


@pytest.fixture(scope="module", autouse=True)
def counts() -> Iterator[Counter[str]]:
    """How many requests of each kind got which status."""
    found: Counter[str] = Counter()
    yield found
    if COUNTS:
        Path(COUNTS).write_text(json.dumps(found))


@pytest.mark.timeout(7200)
@settings(EACH, max_examples=EXAMPLES * 3 // 5)
@given(data=st.data())
def test_requests_made_from_the_description(url, operations, counts, data):
    operation = data.draw(st.sampled_from(operations))
    modes = list(GenerationMode) if operation.path in GENERATIONS else [GenerationMode.POSITIVE]
    mode = data.draw(st.sampled_from(modes))
    case = data.draw(operation.as_strategy(generation_mode=mode))
    response = case.call(base_url=url, timeout=60)
    counts[f"{mode.value} {response.status_code}"] += 1
    case.validate_response(response, checks=CHECKS)


@pytest.mark.timeout(7200)
@settings(EACH, max_examples=EXAMPLES // 5)
@given(data=st.data())
def test_broken_bodies(url, description, counts, data):
    path = data.draw(st.sampled_from(GENERATIONS))
    kind = data.draw(st.sampled_from(["field", "anything", "bytes", "method"]))
    method, headers = "POST", {"Content-Type": "application/json"}
    body = data.draw(anything)
    if kind == "field":
        schema = "CompletionBody" if path == GENERATIONS[0] else "ChatBody"
        fields = [*description["components"]["schemas"][schema]["properties"], "x"]
        body = VALID[path] | {data.draw(st.sampled_from(fields)): body}
    encoded = json.dumps(body).encode()
    if kind == "bytes":
        cut = data.draw(st.integers(0, len(encoded)))
        encoded = encoded[:cut] + data.draw(st.binary(max_size=20))
        headers["Content-Type"] = data.draw(
            st.sampled_from(["application/json", "text/plain", "multipart/form-data", "x"])
        )
    if kind == "method":
        method = data.draw(st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]))
        path = data.draw(
            st.sampled_from([*GENERATIONS, "/v1/models/%2e%2e/x", "/v1", "//", "/%00"])
        )
    counts[f"{kind} {send(url, method, path, encoded, headers)}"] += 1


def send(url: str, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
    """The status; refusals must have the error shape, and nothing may be a 5xx."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        assert response.status < 500
        if response.status >= 400 and method != "HEAD":
            assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
        return response.status
    finally:
        connection.close()


GOOD_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GOOD_BODY = json.dumps(VALID[GENERATIONS[0]]).encode()
HEADERS = (
    b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: 3\r\nContent-Length: 5\r\n",
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"Authorization: " + b"A" * 70_000 + b"\r\n",
    b"X: \xff\xfe\0\r\n",
    b": no name\r\n",
    b" folded\r\n",
)


@pytest.mark.timeout(7200)
@settings(EACH, max_examples=EXAMPLES - EXAMPLES * 3 // 5 - EXAMPLES // 5)
@given(data=st.data())
def test_broken_http(url, counts, data):
    kind = data.draw(st.sampled_from(["noise", "header", "chunks", "cut", "pipelined"]))
    whole = GOOD_HEAD + b"Content-Length: %d\r\n\r\n" % len(GOOD_BODY) + GOOD_BODY
    if kind == "noise":
        sent = data.draw(st.binary(min_size=1, max_size=60)) + b"\r\n\r\n"
    elif kind == "header":
        sent = GOOD_HEAD + data.draw(st.sampled_from(HEADERS)) + b"\r\n" + GOOD_BODY
    elif kind == "chunks":
        size = data.draw(st.sampled_from([b"zz", b"-5", b"FFFFFFFFFFFFFFFFF", b"5", b"0"]))
        sent = GOOD_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + GOOD_BODY
    elif kind == "cut":
        sent = whole[: data.draw(st.integers(1, len(whole) - 1))]
    else:
        sent = whole + data.draw(st.binary(max_size=40)) + b"\r\n\r\n" + whole
    statuses = exchange(url, sent)
    counts[f"{kind} {statuses[0] if statuses else 'closed'}"] += 1
    assert all(status < 500 for status in statuses), statuses


def exchange(url: str, sent: bytes) -> list[int]:
    """Say something and no more; the statuses of whatever comes back until the end."""
    place = urlsplit(url)
    received = b""
    with (
        socket.create_connection((place.hostname, place.port), 20) as connection,
        suppress(ConnectionError),
    ):
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            received += part
    lines = [line for line in received.split(b"\n") if line.startswith(b"HTTP/1.1 ")]
    return [int(line.split()[1]) for line in lines]


def test_the_server_is_well_and_empty_afterwards(url):
    assert send(url, "GET", "/ready", b"", {}) == 200
    body = json.dumps(VALID[GENERATIONS[0]]).encode()
    assert send(url, "POST", GENERATIONS[0], body, {"Content-Type": "application/json"}) == 200
    metrics = read(url, "/metrics")
    for gauge in ("running", "waiting"):
        assert f"weft_engine_{gauge} 0.0" in metrics
