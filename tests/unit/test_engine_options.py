"""Options of the engine that change how it runs and must change no token."""

from __future__ import annotations

import pytest

from checkpoints import make_checkpoint
from weft.engine.config import EngineConfig
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("model"), "llama"))


PROMPTS = [[5, 6, 7], list(range(3, 60)), [9], list(range(100, 130))]
SAMPLING = [
    SamplingParams(max_tokens=30, temperature=0.9 * (i % 2), seed=i, stop_token_ids=(11, 57, 140))
    for i in range(4)
]


@pytest.fixture(scope="module")
def expected(model):
    return LLM(model, dtype="float32").generate(PROMPTS, SAMPLING)


@pytest.mark.parametrize(
    "config",
    [
        {"overlap": True},
        {"overlap": True, "max_batch_tokens": 9},
        {"overlap": True, "cache_tokens": 96, "block_size": 8},
        {"overlap": True, "max_batch_requests": 2},
        {"graphs": False, "all_reduce": "library", "graph_batches": (1, 2)},
        {"all_reduce": "weft"},
    ],
    ids=str,
)
def test_no_token_changes(config, model, expected):
    llm = LLM(model, dtype="float32", **config)
    assert llm.generate(PROMPTS, SAMPLING) == expected
    assert not llm.engine.has_work
    pool = llm.engine.scheduler.pool
    assert pool.num_free == pool.num_blocks - 1


def test_recomputed_in_chunks_after_preemption_the_tokens_are_the_same(model):
    """A recomputation that ends in a lone row reads that row's own token, not the table's."""
    prompts = [list(range(3, 3 + length)) for length in (53, 54, 55, 20, 31)]
    sampling = SamplingParams(max_tokens=40, temperature=0.9, seed=1, ignore_eos=True)
    one = LLM(model, dtype="float32")
    alone = [one.generate([prompt], sampling)[0] for prompt in prompts]
    for budget in (64, 16, 7):
        crowded = LLM(model, dtype="float32", cache_tokens=160, max_batch_tokens=budget)
        assert crowded.generate(prompts, sampling) == alone


def test_wrong_values_are_named(model):
    with pytest.raises(UserError, match="`memory_share`"):
        EngineConfig(memory_share=1.5)
    with pytest.raises(UserError, match="`all_reduce` fastest"):
        LLM(model, all_reduce="fastest")
