"""Guesses in the engine: what is looked up, what is kept, and that tokens stay what they are."""

from __future__ import annotations

import json
import random

import pytest

from engine_cases import write_model
from weft.cli import main
from weft.engine.config import EngineConfig
from weft.engine.llm import LLM
from weft.engine.ngram import NgramProposer
from weft.engine.request import Request, SamplingParams
from weft.errors import UserError, WorkloadError


def request(tokens: list[int], **sampling) -> Request:
    params = SamplingParams(**sampling)
    return Request(number=0, prompt=tokens, sampling=params, stop_ids=frozenset())


def test_drafts_are_what_followed_the_longest_latest_match():
    proposer = NgramProposer(3)
    assert proposer.propose(request([1, 2, 3, 4, 5, 1, 2]), 9) == [3, 4, 5]
    assert proposer.propose(request([1, 2, 3, 9, 1, 2, 4, 8, 1, 2]), 9) == [4, 8, 1]
    assert proposer.propose(request([7, 1, 2, 3, 9, 1, 2, 4, 7, 1, 2]), 9) == [3, 9, 1]
    assert proposer.propose(request([1, 2, 3, 4, 5, 1, 2]), 1) == [3]
    assert proposer.propose(request([1, 2, 3]), 9) == []
    assert proposer.propose(request([5, 5, 5]), 9) == [5]
    assert proposer.propose(request([1, 2, 3, 1, 2], presence_penalty=1.0), 9) == []


def test_an_index_grows_with_its_request_as_a_search_would_find():
    draw, proposer = random.Random(3), NgramProposer(4)
    one = request([draw.randrange(3) for _ in range(9)])
    for _ in range(60):
        tokens, expected = one.tokens, []
        for size in (4, 3, 2):
            run = tokens[-size:]
            found = [e for e in range(size, len(tokens)) if tokens[e - size : e] == run]
            if found and not expected:
                expected = tokens[found[-1] : found[-1] + 4]
        assert proposer.propose(one, 4) == expected
        one.output += [draw.randrange(3) for _ in range(draw.randint(1, 3))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.02, "seed": 5}, {"temperature": 1.2, "seed": 5, "top_k": 9}]
)
@pytest.mark.parametrize("engine", ["weft", "vllm", "vllm-v0"])
def test_tokens_are_the_same_and_steps_fewer(model, sampling, engine):
    prompts = [[7, 8, 9] * 6, [3, 4] * 5 + [5], [1, 2, 3]]
    params = SamplingParams(max_tokens=30, ignore_eos=True, logprobs=1, **sampling)
    options = {"weights": "dummy", "conventions": engine}
    plain, guessing = LLM(model, **options), LLM(model, speculate="ngram:4", **options)
    steps: list[int] = []
    expected = plain.generate(prompts, params)
    found = guessing.generate(prompts, params, on_step=lambda on: steps.append(len(on)))
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    for one, other in zip(found, expected, strict=True):
        pairs = zip(one.logprobs, other.logprobs, strict=True)
        assert all(abs(a.logprob - b.logprob) < 1e-3 for a, b in pairs)
    scheduler = guessing.engine.scheduler
    assert 0 <= scheduler.num_accepted <= scheduler.num_drafted
    assert scheduler.num_accepted or "top_k" in sampling
    assert sum(steps) == 90
    if not sampling:
        assert len(steps) < 30
    assert scheduler.pool.num_free == scheduler.pool.num_blocks - 1


def test_what_the_engine_cannot_guess_is_refused(model, tmp_path):
    with pytest.raises(UserError, match="leave `overlap` out"):
        EngineConfig(speculate="ngram:2", overlap=True)
    with pytest.raises(UserError, match="the engine runs ngram:N"):
        LLM(model, weights="dummy", speculate="eagle:2")
    for wrong in ("ngram", 4):
        with pytest.raises(UserError, match="speculate"):
            LLM(model, weights="dummy", speculate=wrong)
    delta = {"model_type": "qwen3_5_text", "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    sizes = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_hidden_layers": 4}
    config = delta | sizes | {"head_dim": 8}
    with pytest.raises(WorkloadError, match="keeps a state of each sequence"):
        LLM(write_model(tmp_path, **config), weights="dummy", speculate="ngram:2")


def test_the_command_says_how_many_drafts_were_right(model, capsys):
    arguments = ["run", model, "--weights", "dummy", "--ids", "7,8,9,7,8,9,7,8,9,7,8,9"]
    arguments += ["--decode", "24", "--ignore-eos", "--speculate", "ngram:3"]
    assert main.run([*arguments, "--format", "json"]) == 0
    drafts = json.loads(capsys.readouterr().out)["drafts"]
    assert 0 < drafts["right"] <= drafts["asked"]
    assert main.run(arguments) == 0
    assert f"drafts: {drafts['right']} of {drafts['asked']} were right" in capsys.readouterr().out
