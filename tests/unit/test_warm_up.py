"""What runs before the first request leaves nothing behind, and pads no prompt's attention wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from weft.engine.batch import to_device
from weft.engine.llm import LLM
from weft.engine.ngram import NgramProposer
from weft.engine.request import SamplingParams
from weft.engine.runner import StageRunner
from weft.engine.warm_up import warm_up
from weft.errors import EnvironmentUnavailable
from weft.layers.long_prompts import LONG, long_prompts, padded_length, padded_lengths

SAMPLING = SamplingParams(max_tokens=6, temperature=1.0, top_p=0.9, seed=5)


def test_a_warm_engine_gives_the_same_tokens_and_kept_nothing():
    prompts = [[3, 1, 4, 1, 5] * 9, [0] * 40]
    cold = LLM("embedded", cache_tokens=512)
    warm = LLM("embedded", cache_tokens=512)
    warm_up(warm.engine)
    scheduler = warm.engine.scheduler
    assert not warm.engine.has_work
    assert scheduler.pool.num_free == cold.engine.scheduler.pool.num_free
    assert scheduler.prefix.num_asked == scheduler.prefix.num_hit == 0
    ours, reference = (llm.generate(prompts, SAMPLING) for llm in (warm, cold))
    assert [one.token_ids for one in ours] == [one.token_ids for one in reference]
    assert scheduler.prefix.num_hit == 0


def test_drafts_of_a_warm_up_are_not_counted(monkeypatch):
    monkeypatch.setattr(NgramProposer, "propose", lambda self, request, most: [0] * most)
    llm = LLM("embedded", cache_tokens=512, speculate="ngram:3")
    warm_up(llm.engine)
    scheduler = llm.engine.scheduler
    assert (scheduler.num_drafted, scheduler.num_accepted) == (0, 0)


def test_a_longest_step_that_fails_ends_the_start(monkeypatch):
    llm = LLM("embedded", cache_tokens=512)

    def fails(*_, **__):
        raise RuntimeError("no memory for it")

    monkeypatch.setattr(StageRunner, "forward", fails)
    with pytest.raises(
        EnvironmentUnavailable, match=r"a step of 12. rows fails: .*no memory.*lower"
    ):
        warm_up(llm.engine)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_arrays_on_the_device_begin_at_16_bytes(lengths):
    arrays = [np.random.default_rng(i).integers(0, 99, n) for i, n in enumerate(lengths)]
    for array, tensor in zip(arrays, to_device(torch.device("cpu"), *arrays), strict=True):
        assert tensor.tolist() == array.tolist()
        assert tensor.storage_offset() * tensor.itemsize % 16 == 0


@given(st.integers(LONG, 1 << 20))
def test_prompts_are_padded_to_few_lengths(length):
    padded = padded_length(length)
    assert length <= padded <= 1.25 * length + 1
    assert padded_length(padded) == padded
    assert padded in padded_lengths(length)
    assert len(padded_lengths(length)) <= 4 * length.bit_length()


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(LONG, LONG + 700), min_size=1, max_size=2), st.integers(0, 99))
def test_long_prompts_see_what_is_before_them(lengths, seed):
    torch.manual_seed(seed)
    queries = torch.randn(sum(lengths), 4, 8)
    keys, values = torch.randn(2, sum(lengths), 2, 8)
    ours = long_prompts(queries, keys, values, lengths)
    parts = zip(*(each.split(lengths) for each in (queries, keys, values)), strict=True)
    for one, (q, k, v) in zip(ours.split(lengths), parts, strict=True):
        each_head = (q, *(each.repeat_interleave(2, dim=1) for each in (k, v)))
        reference = F.scaled_dot_product_attention(
            *(each.transpose(0, 1) for each in each_head), is_causal=True
        )
        torch.testing.assert_close(one, reference.transpose(0, 1).flatten(1))
