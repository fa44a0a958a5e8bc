"""What the engine refuses, and that nothing of it stays behind; steps that fail."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from checkpoints import make_checkpoint
from weft.engine.config import EngineConfig
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.engine.sampling import Sampler
from weft.errors import EnvironmentUnavailable, StepError, UserError, WorkloadError

GOOD = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    directory = make_checkpoint(tmp_path_factory.mktemp("model"), "llama")
    return LLM(str(directory), dtype="float32", cache_tokens=256)


@pytest.fixture
def clean(llm):
    """The engine before and after: nothing queued, all blocks and rows free."""
    expected = llm.generate([[5, 6, 7]], GOOD)
    yield llm
    scheduler = llm.engine.scheduler
    assert not llm.engine.has_work
    assert scheduler.pool.num_free == scheduler.pool.num_blocks - 1
    assert len(scheduler._rows) == llm.engine.config.max_batch_requests
    assert llm.generate([[5, 6, 7]], GOOD) == expected


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("max_tokens", 1.5),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", "3"),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", -0.1),
        ("temperature", None),
        ("temperature", 1e39),
        ("temperature", 10**400),
        ("repetition_penalty", 1e-39),
        ("repetition_penalty", 1e39),
        ("presence_penalty", 10**400),
        ("logit_bias", ((math.inf, 1.0),)),
        ("top_k", 2**63),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("seed", "x"),
        ("seed", 1.0),
        ("stop_token_ids", (1.0,)),
        ("stop_token_ids", 3),
        ("stop_token_ids", "3"),
        ("ignore_eos", 1),
        ("logprobs", True),
        ("logprobs", 21),
        ("logprobs", 2.0),
    ],
)
def test_a_bad_parameter_is_named_where_it_is_made(argument, value):
    with pytest.raises(WorkloadError, match=f"^`{argument}` .*must be") as raised:
        SamplingParams(**{argument: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("weights", "foo"),
        ("block_size", -16),
        ("block_size", 0),
        ("cache_tokens", -1),
        ("cache_tokens", 1e4),
        ("max_batch_tokens", 0),
        ("max_batch_requests", 0),
        ("memory_share", math.nan),
        ("memory_share", 1.5),
        ("seed", None),
        ("graphs", "yes"),
        ("graph_batches", ()),
        ("graph_batches", (0, 1)),
        ("dtype", 32),
        ("block_size", 10**9),
        ("max_batch_requests", 10**12),
    ],
)
def test_a_bad_option_of_the_engine_is_named(argument, value):
    with pytest.raises(UserError, match=f"^`{argument}` .*must be"):
        EngineConfig(**{argument: value})


@pytest.mark.parametrize(
    "prompts",
    [
        "hello",
        [[5, 6], [1.0, 2.0]],
        [[5, 6], [7, 199]],
        [[5, 6], [-1]],
        [[5, 6], []],
        [[5, 6], 7],
        [[5, 6], [7] * 300],
        [[5, 6], [None]],
        [[5, 6], "text without a tokenizer"],
        [[5, 6], b"ab"],
        [[5, 6], bytearray(b"ab")],
        [[5, 6], {5, 6}],
        [[5, 6], {5: 6}],
        [[5, 6], [True]],
        [[5, 6], [[True]]],
    ],
    ids=str,
)
def test_a_bad_batch_is_refused_whole(clean, prompts):
    with pytest.raises(WorkloadError):
        clean.generate(prompts, GOOD)
    assert not clean.engine.has_work


@pytest.mark.parametrize(
    "prompts",
    [None, 5, iter([[5]]), b"a", {(5,)}, {(5,): 6}],
    ids=lambda prompts: type(prompts).__name__,
)
def test_prompts_that_are_no_list_are_named(clean, prompts):
    with pytest.raises(WorkloadError, match=r"^`prompts` .*must be a list"):
        clean.generate(prompts, GOOD)


@pytest.mark.parametrize("token", [-1, 10**6])
def test_a_stop_token_that_does_not_exist_is_named(clean, token):
    with pytest.raises(WorkloadError, match=f"^`stop_token_ids` {token}: outside the vocabulary"):
        clean.generate([[5]], SamplingParams(stop_token_ids=(5, token)))


def test_stop_tokens_that_leave_no_other_to_begin_with_are_named(clean):
    every = tuple(range(clean.engine.spec.vocab_size))
    with pytest.raises(WorkloadError, match=r"^`min_tokens` 2: .* every token stops"):
        clean.generate([[5]], SamplingParams(min_tokens=2, stop_token_ids=every))
    done = clean.generate([[5]], SamplingParams(min_tokens=0, stop_token_ids=every))
    assert len(done[0].token_ids) == 1
    done = clean.generate([[5]], SamplingParams(min_tokens=2, stop_token_ids=every[1:]))
    assert done[0].token_ids[:2] == (0, 0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("model", 5),
        ("layout", "tp2"),
        ("timeout_s", math.nan),
        ("timeout_s", -1),
        ("timeout_s", math.inf),
        ("timeout_s", "1"),
        ("timeout_s", None),
    ],
)
def test_a_bad_argument_of_llm_is_named(argument, value):
    with pytest.raises(UserError, match=f"^`{argument}` {value!r}: must be"):
        LLM(**{"model": "embedded"} | {argument: value})


def test_an_unknown_argument_of_llm_is_named_with_the_one_that_was_meant():
    with pytest.raises(UserError, match=r"^`blocksize`: .* did you mean `block_size`"):
        LLM("embedded", blocksize=16)
    with pytest.raises(UserError, match=r"^`xyzzy`: LLM takes no such argument$"):
        LLM("embedded", xyzzy=16)


@pytest.mark.parametrize(
    "sampling", [[GOOD], [GOOD, {"max_tokens": 3}], {"max_tokens": 3}, [GOOD, None], 5]
)
def test_wrong_sampling_is_refused(clean, sampling):
    with pytest.raises(WorkloadError):
        clean.generate([[5], [6]], sampling)


def test_a_second_call_at_the_same_time_is_refused(clean):
    inside, told = threading.Event(), threading.Event()
    results = []

    def wait(_):
        inside.set()
        told.wait(60)

    first = threading.Thread(
        target=lambda: results.append(clean.generate([[9, 8]], GOOD, on_step=wait))
    )
    first.start()
    inside.wait(60)
    with pytest.raises(WorkloadError, match="one call at a time"):
        clean.generate([[5, 6]], GOOD)
    told.set()
    first.join()
    assert results[0] == clean.generate([[9, 8]], GOOD)


def test_what_on_step_raises_leaves_nothing_queued(clean):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clean.generate([[9, 8], [7]], GOOD, on_step=interrupt)


@pytest.mark.parametrize(
    "place",
    [
        "sampling.Sampler.choose",
        "step.Step.of",
        "runner.StageRunner.forward",
        "scheduler.Scheduler.finish",
    ],
)
def test_a_step_that_fails_ends_its_requests_and_no_more(clean, place, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(f"weft.engine.{place}", fail)
        with pytest.raises(StepError, match="planted"):
            clean.generate([[9, 8], [7]], GOOD)


def test_only_the_step_that_fails_ends(clean, monkeypatch):
    """Prompts in chunks: the one whose step failed ends, though it had not sampled yet."""
    choose, calls = Sampler.choose, []

    def fail_once(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("planted")
        return choose(self, *arguments)

    monkeypatch.setattr(Sampler, "choose", fail_once)
    engine = clean.engine
    long, late = (engine.add(10**6 + i, [5, 6], GOOD) for i in (0, 1))
    for _ in range(2):
        engine.step()
    engine.abort(late.number)
    new = engine.add(10**6 + 2, [3], GOOD)
    while not new.is_finished:
        engine.step()
    assert long.finish_reason == new.finish_reason == "error"
    assert "planted" in long.error
    after = engine.add(10**6 + 3, [3], GOOD)
    while not after.is_finished:
        engine.step()
    assert after.finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_give_no_token(clean, temperature, monkeypatch):
    forward = type(clean.engine.runner.stage).forward

    def spoiled(self, *arguments):
        logits = forward(self, *arguments)
        logits[1:] = math.nan
        return logits

    monkeypatch.setattr(type(clean.engine.runner.stage), "forward", spoiled)
    sampling = SamplingParams(max_tokens=3, temperature=temperature, ignore_eos=True)
    with pytest.raises(StepError, match="NaN"):
        clean.generate([[9, 8], [7, 6]], sampling)
    assert len(clean.generate([[9, 8]], sampling)[0].token_ids) == 3


def test_a_lost_engine_says_so(tmp_path):
    from weft.errors import CommunicationError, EnvironmentUnavailable

    llm = LLM("embedded", cache_tokens=64)

    def lose(*_, **__):
        raise CommunicationError("all_reduce: rank 1 is gone")

    llm.engine.runner.forward = lose
    with pytest.raises(CommunicationError):
        llm.generate([[1]], GOOD)
    for _ in range(2):
        with pytest.raises(EnvironmentUnavailable, match="has ended: all_reduce: rank 1 is gone"):
            llm.generate([[1]], GOOD)


def test_numpy_and_torch_ids_are_taken(clean):
    import numpy as np

    expected = clean.generate([[5, 6, 7]], GOOD)
    assert clean.generate([np.array([5, 6, 7])], GOOD) == expected
    assert clean.generate([torch.tensor([5, 6, 7])], GOOD) == expected


def test_a_closed_engine_says_so_and_holds_no_weights(tmp_path):
    model = make_checkpoint(tmp_path, "llama")
    with LLM(str(model), device="cpu") as llm:
        llm.generate([[5, 6]], SamplingParams(max_tokens=2))
    assert all(weight.is_meta for weight in llm.engine.runner.stage.parameters())
    with pytest.raises(EnvironmentUnavailable, match="it was closed"):
        llm.generate([[5, 6]], SamplingParams(max_tokens=2))
