"""The very requests that evaluation and load tools send, and what they read of the answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest

from serve_harness import Harness, call, serving

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
RUNNING_USAGE = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Harness]:
    with serving() as harness:
        yield harness


def post(server: Harness, path: str, body: dict) -> dict:
    status, answer = call(server, "POST", f"/v1/{path}", {"model": "embedded"} | body)
    assert status == 200, answer
    return answer


def test_lm_eval_reads_loglikelihoods(server):
    """Its sum leaves out the context and the one token that the server adds."""
    prompts = [list(b"context and"), list(b"ab")]
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True}
    choices = post(server, "completions", body | {"seed": 1234})["choices"]
    for prompt, choice in zip(prompts, choices, strict=True):
        found = choice["logprobs"]
        assert len(found["token_logprobs"]) == len(found["top_logprobs"]) == len(prompt) + 1
        assert sum(found["token_logprobs"][1:-1]) == pytest.approx(-math.log(2) * (len(prompt) - 1))
        assert all(max(top.values()) == -math.log(2) for top in found["top_logprobs"][1:-1])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": [[97, 98, 99]], "stop": ["\n", "</s>"], "seed": 1234}),
        ("chat/completions", {"messages": MESSAGES, "stop": [], "seed": 1234}),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "hi", "type": "text"}], "stop": ["\n"]},
        ),
    ],
    ids=["lm-eval", "lm-eval chat", "lm-eval chat before 0.4.10"],
)
def test_lm_eval_reads_texts(server, path, body):
    answer = post(server, path, body | {"max_tokens": 3, "temperature": 0})
    choice = answer["choices"][0]
    assert choice.get("text") or choice["message"]["content"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", STREAM | {"prompt": "ab", "repetition_penalty": 1.0, "logprobs": None}),
        ("chat/completions", STREAM | {"messages": MESSAGES, "max_completion_tokens": 4}),
        ("completions", RUNNING_USAGE | {"prompt": "ab", "stop": None, "ignore_eos": True}),
        (
            "chat/completions",
            RUNNING_USAGE
            | {"messages": MESSAGES, "stop": None, "ignore_eos": True, "max_completion_tokens": 4},
        ),
        ("completions", STREAM | {"prompt": ["ab"], "min_tokens": 4, "ignore_eos": True}),
    ],
    ids=["vllm", "vllm chat", "guidellm", "guidellm chat", "aiperf"],
)
def test_load_tools_count_one_event_a_token(server, path, body):
    """Its first event is their time to the first token, each later one a gap."""
    limit = {} if "max_completion_tokens" in body else {"max_tokens": 4}
    text = post(server, path, body | limit)["text"].decode()
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    *tokens, last = map(json.loads, events)
    assert [len(one["choices"]) for one in tokens] == [1] * 4
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    if path.startswith("chat"):
        roles = [one["choices"][0]["delta"].get("role") for one in tokens]
        assert roles == ["assistant", None, None, None]
