"""One rank against transformers: logits, greedy tokens, batches, chunks, preemption."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from checkpoints import (
    FAMILIES,
    make_checkpoint,
    reference_greedy,
    reference_logits,
    reference_model,
)
from stage_logits import stage_logits
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.engine.step import Step


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model"), request.param)


def random_prompts(seed: int, lengths: list[int]) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(3, 199) for _ in range(length)] for length in lengths]


def all_logits(llm: LLM, prompt: list[int]) -> torch.Tensor:
    engine = llm.engine
    request = engine.add(10**6, prompt, SamplingParams(max_tokens=1))
    chunks = engine.scheduler.schedule()
    assert [c.request for c in chunks] == [request]
    inputs = Step.of(chunks)
    inputs.logit_rows = np.arange(len(prompt))
    logits = stage_logits(engine, inputs)
    engine.abort(10**6)
    return logits


def test_logits_equal_transformers(checkpoint):
    reference = reference_model(checkpoint)
    llm = LLM(str(checkpoint), dtype="float32")
    for prompt in random_prompts(1, [1, 17, 90]):
        ours = all_logits(llm, prompt)[:, :199]
        torch.testing.assert_close(ours, reference_logits(reference, prompt), atol=1e-4, rtol=0)


def test_greedy_tokens_equal_transformers_in_batches_and_chunks(checkpoint):
    reference = reference_model(checkpoint)
    prompts = random_prompts(2, [5, 33, 1, 70])
    expected = [reference_greedy(reference, prompt, 64) for prompt in prompts]
    sampling = SamplingParams(max_tokens=64, ignore_eos=True)
    for config in ({}, {"max_batch_tokens": 7}, {"max_batch_requests": 2, "block_size": 3}):
        llm = LLM(str(checkpoint), dtype="float32", **config)
        completions = llm.generate(prompts, sampling)
        assert [list(c.token_ids) for c in completions] == expected, config


def test_preemption_changes_no_token(checkpoint):
    prompts = random_prompts(3, [20, 25, 30])
    sampling = SamplingParams(max_tokens=40, ignore_eos=True)
    expected = LLM(str(checkpoint), dtype="float32").generate(prompts, sampling)
    small = LLM(str(checkpoint), dtype="float32", cache_tokens=96, block_size=8)
    assert small.generate(prompts, sampling) == expected
    assert small.engine.scheduler.pool.num_free == 12
