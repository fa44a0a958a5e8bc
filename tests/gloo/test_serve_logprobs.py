"""Log-probabilities from ``weft serve`` through the official client, beside transformers' own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from checkpoints import make_checkpoint, reference_logits, reference_model
from serve_process import Server

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3]]
LAYOUTS = {
    "tp2": ["--tp", "2"],
    "pp2": ["--pp", "2"],
}


@contextmanager
def client_of(model: Path | str, *arguments: str) -> Iterator[openai.OpenAI]:
    server = Server(model, *arguments)
    try:
        with openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
        ) as client:
            yield client
    finally:
        server.end()


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Without tokenizer files: a token's text is its id and a space."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), "llama")


@pytest.fixture(scope="module")
def model(directory):
    return reference_model(directory)


@pytest.mark.parametrize("name", LAYOUTS)
def test_completions_have_the_logprobs_of_transformers(name, directory, model):
    with client_of(directory, "--dtype", "float32", *LAYOUTS[name]) as client:
        options = {
            "model": "tiny",
            "prompt": PROMPTS,
            "max_tokens": 8,
            "temperature": 0.8,
            "seed": 1,
            "logprobs": 4,
            "extra_body": {"ignore_eos": True},
        }
        whole = client.completions.create(**options)
        streamed: list[list] = [[], []]
        for piece in client.completions.create(**options, stream=True):
            streamed[piece.choices[0].index].append(piece.choices[0])
        plain = client.completions.create(**options | {"logprobs": None})
        again = {"model": "tiny", "prompt": [5, 6, 7] * 20, "max_tokens": 1}
        of_prompt = {"extra_body": {"prompt_logprobs": 0}}
        cached = [
            client.completions.create(**again | more).usage.prompt_tokens_details.cached_tokens
            for more in ({}, {}, of_prompt)
        ]
        assert cached == [0, 48, 0]
    for prompt, choice, pieces, without in zip(
        PROMPTS, whole.choices, streamed, plain.choices, strict=True
    ):
        assert without.logprobs is None
        assert without.text == choice.text
        check(choice.logprobs, prompt, choice.text, model)
        for field in ("tokens", "token_logprobs", "text_offset"):
            joined = [one for piece in pieces for one in getattr(piece.logprobs, field)]
            whole_list = getattr(choice.logprobs, field)
            assert joined == (whole_list if field == "tokens" else pytest.approx(whole_list))


def check(logprobs, prompt, text, model):
    assert "".join(logprobs.tokens) == text
    tokens = [int(one) for one in logprobs.tokens]
    expected = reference_logits(model, prompt + tokens).log_softmax(-1)[len(prompt) - 1 : -1]
    assert len(tokens) == 8
    for place, (row, token) in enumerate(zip(expected, tokens, strict=True)):
        assert logprobs.token_logprobs[place] == pytest.approx(float(row[token]), abs=2e-4)
        best = {f"{one} " for one in row.topk(4).indices.tolist()} | {f"{token} "}
        assert set(logprobs.top_logprobs[place]) == best
        for name, value in logprobs.top_logprobs[place].items():
            assert value == pytest.approx(float(row[int(name)]), abs=2e-4)
        assert logprobs.text_offset[place] == len("".join(logprobs.tokens[:place]))


def test_chat_has_the_logprobs_of_the_library():
    messages = [{"role": "user", "content": "hi"}]
    with client_of("embedded", "--tp", "2") as client:
        options = {"model": "tiny", "messages": messages, "max_tokens": 6, "temperature": 0}
        stream = client.chat.completions.create(
            **options, logprobs=True, top_logprobs=3, stream=True
        )
        content = [
            token
            for piece in stream
            if piece.choices[0].logprobs
            for token in piece.choices[0].logprobs.content
        ]
        whole = client.chat.completions.create(**options, logprobs=True).choices[0]
    from weft.engine.llm import LLM
    from weft.engine.request import SamplingParams

    with LLM("embedded", device="cpu") as llm:
        sampling = SamplingParams(max_tokens=6, logprobs=3)
        (done,) = llm.generate(["user: hi\nassistant:"], sampling)
    expected = done.logprobs[: len(content)]
    assert 0 < len(content) == len(done.token_ids) - (done.finish_reason == "stop")
    for token, ours in zip(content, expected, strict=True):
        assert math.isclose(token.logprob, ours.logprob, abs_tol=2e-4)
        assert [one.logprob for one in token.top_logprobs] == pytest.approx(
            [value for _, value in ours.top], abs=2e-4
        )
    assert [one.token for one in whole.logprobs.content] == [one.token for one in content]
    assert all(one.top_logprobs == [] for one in whole.logprobs.content)
