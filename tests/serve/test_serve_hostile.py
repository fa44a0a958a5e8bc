"""Hostile requests made from the server's own OpenAPI description: never a 5xx, never a crash.

``WEFT_HOSTILE_EXAMPLES=10000 pytest tests/serve/test_serve_hostile.py`` is the long run.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_harness import Harness, serving
from weft.serve.fake_engine import FakeEngine

EXAMPLES = int(os.environ.get("WEFT_HOSTILE_EXAMPLES", "120"))
PATHS = ("/v1/completions", "/v1/chat/completions")

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
VALID: dict[str, dict[str, Any]] = {
    PATHS[0]: {"model": "embedded", "prompt": "abc", "max_tokens": 3},
    PATHS[1]: {
        "model": "embedded",
        "messages": [{"role": "user", "content": "abc"}],
        "max_tokens": 3,
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Harness]:
    with serving(FakeEngine(step_s=0.0)) as harness:
        yield harness


@pytest.fixture(scope="module")
def schema(server: Harness) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("GET", "/openapi.json")
    document = json.loads(connection.getresponse().read())
    connection.close()
    return document


def of_schema(  # noqa: C901 - one case a JSON type
    part: dict[str, Any], whole: dict[str, Any], depth: int = 0
) -> st.SearchStrategy[Any]:
    """Values that follow a part of the description, or nearly."""
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[1]
        return of_schema(whole["components"]["schemas"][name], whole, depth + 1)
    if "anyOf" in part:
        return st.one_of(*(of_schema(one, whole, depth + 1) for one in part["anyOf"]))
    if "enum" in part or "const" in part:
        return st.sampled_from(part.get("enum", [part.get("const")]))
    match part.get("type"):
        case "object" if "properties" in part and depth < 6:
            required = set(part.get("required", ()))
            fields = {
                name: of_schema(one, whole, depth + 1) for name, one in part["properties"].items()
            }
            return st.fixed_dictionaries(
                {name: one for name, one in fields.items() if name in required},
                optional={name: one for name, one in fields.items() if name not in required},
            )
        case "array" if depth < 6:
            return st.lists(of_schema(part.get("items", {}), whole, depth + 1), max_size=4)
        case "string":
            return texts
        case "integer":
            low, high = part.get("minimum", -5), part.get("maximum", 400)
            return st.one_of(st.integers(low, max(low, min(high, 400))), numbers)
        case "number":
            return st.one_of(st.floats(0, 1), numbers)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case _:
            return anything


def send(server: Harness, method: str, path: str, body: bytes, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        if response.status >= 400 and method != "HEAD":
            assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
        return response.status
    finally:
        connection.close()


@pytest.mark.timeout(3600)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_hostile_requests_are_refused_in_shape(server, schema, data):
    path = data.draw(st.sampled_from(PATHS))
    part = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    kind = data.draw(st.sampled_from(["schema", "mutated", "anything", "bytes", "method"]))
    method, headers = "POST", {"Content-Type": "application/json"}
    if kind == "schema":
        body = data.draw(of_schema(part, schema))
        body |= data.draw(st.sampled_from([{}, {"model": "embedded"}, VALID[path]]))
    elif kind == "mutated":
        field = data.draw(st.sampled_from([*schema_fields(part, schema), "x"]))
        body = VALID[path] | {field: data.draw(anything)}
    else:
        body = data.draw(anything)
    if isinstance(body, dict) and isinstance(body.get("n"), int):
        body["n"] = min(body["n"], 4)
    encoded = json.dumps(body).encode()
    if kind == "bytes":
        cut = data.draw(st.integers(0, len(encoded)))
        encoded = encoded[:cut] + data.draw(st.binary(max_size=20))
        headers["Content-Type"] = data.draw(
            st.sampled_from(["application/json", "text/plain", "multipart/form-data", "x"])
        )
    if kind == "method":
        method = data.draw(st.sampled_from(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]))
        path = data.draw(st.sampled_from([*PATHS, "/v1/models/%2e%2e/x", "/v1", "//", "/%00"]))
    assert send(server, method, path, encoded, headers) < 500


def schema_fields(part: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    name = part["$ref"].rsplit("/", 1)[1]
    return list(whole["components"]["schemas"][name]["properties"])


def test_the_server_is_well_and_empty_afterwards(server):
    assert send(server, "GET", "/ready", b"", {}) == 200
    body = json.dumps(VALID[PATHS[0]]).encode()
    assert send(server, "POST", PATHS[0], body, {"Content-Type": "application/json"}) == 200
    assert server.engine.stats.running == server.engine.stats.waiting == 0
