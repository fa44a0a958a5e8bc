"""Shared blocks: the pool against a plain model, and tokens with them as without."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from checkpoints import make_checkpoint
from weft.engine.block_pool import BlockPool
from weft.engine.llm import LLM
from weft.engine.request import NO_TOKEN, Request, SamplingParams
from weft.engine.runner import StageRunner
from weft.engine.scheduler import Scheduler
from weft.errors import StepError

SIZE = 4


class Sharing(RuleBasedStateMachine):
    """Requests of few tokens come, run, are aborted; a cache is written and read as by a step.

    ``cells`` holds for every position of the cache which beginning of a text was written there,
    so that a block that is read for the wrong text, or overwritten too early, shows. A step
    that fails writes nothing, and its requests get no token from then on.
    """

    @initialize(
        num_blocks=st.integers(6, 30),
        max_tokens=st.integers(1, 30),
        max_requests=st.integers(1, 6),
        num_groups=st.integers(1, 2),
    )
    def begin(self, num_blocks, max_tokens, max_requests, num_groups):
        self.pool = BlockPool(num_blocks, SIZE)
        self.scheduler = Scheduler(
            self.pool,
            max_batch_tokens=max_tokens,
            max_batch_requests=max_requests,
            num_groups=num_groups,
            prefix_caching=True,
        )
        self.cells: dict[int, tuple[int, ...]] = {}
        self.requests: list[Request] = []
        self.failed: set[Request] = set()
        self.under_way: list = []
        self.number = 0

    @rule(
        prompt=st.integers(1, 14).map(lambda n: [1] * n)
        | st.lists(st.sampled_from([1, 2]), min_size=1, max_size=14),
        max_tokens=st.integers(1, 8),
        wants_prompt=st.booleans(),
    )
    def add(self, prompt, max_tokens, wants_prompt):
        if len(prompt) + max_tokens > self.pool.capacity_tokens:
            return
        self.number += 1
        sampling = SamplingParams(
            max_tokens=max_tokens, prompt_logprobs=0 if wants_prompt else None
        )
        request = Request(
            number=self.number, prompt=prompt, sampling=sampling, stop_ids=frozenset()
        )
        self.scheduler.add(request)
        self.requests.append(request)

    @rule(
        index=st.integers(0, 1),
        fails=st.sampled_from([False, False, False, True]),
        reads=st.integers(0, 2),
    )
    def launch(self, index, fails=False, reads=0):
        if index >= self.scheduler.num_groups or len(self.under_way) > 2:
            return
        chunks = self.scheduler.schedule(index)
        requests = {chunk.request for chunk in chunks}
        if fails or requests & self.failed:
            self.failed |= requests
        for chunk in chunks:
            if chunk.request in self.failed:
                continue
            last = chunk.start + chunk.count
            for position in range(chunk.start, last):
                self.cells[self._cell(chunk.request, position)] = self._held(
                    chunk.request, position
                )
            for position in range(last):
                found = self.cells[self._cell(chunk.request, position)]
                assert found == self._held(chunk.request, position)
        self.under_way.append(
            [(chunk, chunk.request in self.failed) for chunk in chunks if chunk.samples]
        )
        for _ in range(reads):
            self.read()

    @staticmethod
    def _cell(request, position):
        return request.blocks[position // SIZE] * SIZE + position % SIZE

    @staticmethod
    def _held(request, position):
        """The text up to a position, or whose token on its way it will be."""
        known = request.tokens
        return tuple(known[: position + 1]) if position < len(known) else (request, position)

    @rule()
    def read(self):
        if not self.under_way:
            return
        chunks = self.under_way.pop(0)
        ids = [NO_TOKEN if failed else self._next(chunk.request) for chunk, failed in chunks]
        self.scheduler.finish([chunk for chunk, _ in chunks], ids)
        for request in filter(lambda one: one.blocks, self.requests):
            for position in range(min(request.num_computed, len(request.tokens))):
                cell = self._cell(request, position)
                if self.cells.get(cell) == (request, position):
                    self.cells[cell] = self._held(request, position)

    @staticmethod
    def _next(request):
        """Deterministic in the text, so that equal beginnings go on equally."""
        text = bytes(request.tokens)
        return 1 + hashlib.sha256(text).digest()[0] % 2

    @rule(place=st.integers(0, 30))
    def abort(self, place):
        if self.requests:
            self.scheduler.abort(self.requests[place % len(self.requests)].number)

    @invariant()
    def blocks_are_counted(self):
        if not hasattr(self, "pool"):
            return
        owned = [block for request in self.requests for block in request.blocks]
        assert 0 not in owned
        assert len(set(owned)) + self.pool.num_free == self.pool.num_blocks - 1
        for request in self.requests:
            assert len(request.blocks) == len(set(request.blocks))

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        for _ in range(2000):
            if not self.scheduler.has_work:
                break
            for index in range(self.scheduler.num_groups):
                self.launch(index)
            while self.under_way:
                self.read()
        assert not self.scheduler.has_work
        assert self.pool.num_free == self.pool.num_blocks - 1


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = str(make_checkpoint(tmp_path_factory.mktemp("prefix"), "llama"))
    config = {"dtype": "float32", "block_size": 4, "cache_tokens": 160, "max_batch_tokens": 32}
    return [LLM(directory, prefix_caching=one, **config) for one in (True, False)]


beginnings = st.sampled_from([(), (5,) * 9, (7, 8) * 10, (3, 1, 4, 1, 5, 9, 2, 6) * 2])


@settings(deadline=None, max_examples=12)
@given(
    prompts=st.lists(
        st.tuples(beginnings, st.lists(st.integers(3, 190), min_size=1, max_size=9)).map(
            lambda pair: [*pair[0], *pair[1]]
        ),
        min_size=1,
        max_size=6,
    ),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_the_tokens_are_those_without(models, prompts, temperature):
    sampling = SamplingParams(max_tokens=10, ignore_eos=True, temperature=temperature, seed=3)
    with_it, without = models
    for _ in range(2):
        tokens = [
            [one.token_ids for one in llm.generate(prompts, sampling)] for llm in (with_it, without)
        ]
        assert tokens[0] == tokens[1]


def test_hits_are_counted_and_prompt_logprobs_pass_them_by(models):
    llm, without = models
    prefix = llm.engine.scheduler.prefix
    prompt = list(range(20, 61))
    llm.generate([prompt], SamplingParams(max_tokens=1))
    before = prefix.num_asked, prefix.num_hit
    llm.generate([[*prompt, 9]], SamplingParams(max_tokens=1))
    assert (prefix.num_asked - before[0], prefix.num_hit - before[1]) == (42, 40)
    wants = SamplingParams(max_tokens=1, prompt_logprobs=1)
    (done,), (expected,) = (one.generate([prompt], wants) for one in (llm, without))
    assert prefix.num_hit - before[1] == 40
    assert len(done.prompt_logprobs) == 40
    for got, other in zip(done.prompt_logprobs, expected.prompt_logprobs, strict=True):
        assert got.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert without.engine.scheduler.prefix.num_asked == 0


def _planted(*_, **__):
    raise RuntimeError("planted")


def test_what_a_failed_step_left_is_not_found(models, monkeypatch):
    llm, without = models
    prompt = list(range(100, 141))
    sampling = SamplingParams(max_tokens=6, ignore_eos=True)
    llm.generate([[9] * 150], sampling)
    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "forward", _planted)
        with pytest.raises(StepError, match="planted"):
            llm.generate([prompt], sampling)
    assert llm.generate([prompt], sampling) == without.generate([prompt], sampling)


def test_nobody_begins_with_the_chunk_of_a_step_that_failed(models, monkeypatch):
    """The failed prompt has not sampled yet when another one asks for its first chunk."""
    llm, without = models
    prompt = list(range(60, 140))
    sampling = SamplingParams(max_tokens=6, ignore_eos=True)
    llm.generate([[9] * 150], sampling)
    engine = llm.engine
    failing = engine.add(10**6, prompt, sampling)
    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "forward", _planted)
        engine.step()
    assert not failing.is_finished
    engine.abort(failing.number)
    second = engine.add(10**6 + 1, prompt[:30], sampling)
    while not second.is_finished:
        engine.step()
    (expected,) = without.generate([prompt[:30]], sampling)
    assert tuple(second.output) == expected.token_ids


@pytest.mark.parametrize("length", [16, 32, 33])
def test_the_last_token_of_a_prompt_is_computed_again(models, length):
    """Also where the whole prompt fills blocks of 4 that are remembered."""
    with_it, without = models
    sampling = SamplingParams(max_tokens=5, ignore_eos=True)
    prompt = [(7 * length + 3 * i) % 190 for i in range(length)]
    expected = without.generate([prompt], sampling)
    for _ in range(2):
        before = with_it.engine.scheduler.prefix.num_hit
        assert with_it.generate([prompt], sampling) == expected
    assert with_it.engine.scheduler.prefix.num_hit - before == (length - 1) // 4 * 4
