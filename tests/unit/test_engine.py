"""Scheduler and sampling: properties that hold whatever the requests are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.engine.block_pool import BlockPool
from weft.engine.llm import LLM
from weft.engine.request import Request, SamplingParams
from weft.engine.scheduler import Scheduler
from weft.engine.tokenizer import ByteTokenizer
from weft.errors import WorkloadError


def request(number: int, prompt: int, max_tokens: int) -> Request:
    return Request(
        number=number,
        prompt=[0] * prompt,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
        stop_ids=frozenset(),
    )


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=12),
    num_blocks=st.integers(2, 40),
    block_size=st.integers(1, 8),
    max_tokens=st.integers(1, 40),
    max_requests=st.integers(1, 8),
)
def test_every_request_that_fits_alone_finishes(
    sizes, num_blocks, block_size, max_tokens, max_requests
):
    pool = BlockPool(num_blocks, block_size)
    scheduler = Scheduler(pool, max_batch_tokens=max_tokens, max_batch_requests=max_requests)
    accepted = []
    for number, (prompt, length) in enumerate(sizes):
        candidate = request(number, prompt, length)
        if prompt + length > pool.capacity_tokens:
            with pytest.raises(WorkloadError):
                scheduler.check(prompt, length)
        else:
            scheduler.add(candidate)
            accepted.append(candidate)
    for _ in range(100_000):
        if not scheduler.has_work:
            break
        chunks = scheduler.schedule()
        check_step(chunks, accepted, pool, max_tokens, max_requests)
        sampling = [chunk for chunk in chunks if chunk.samples]
        scheduler.finish(sampling, [7] * len(sampling))
    assert all(r.finish_reason == "length" for r in accepted)
    assert all(len(r.output) == r.sampling.max_tokens for r in accepted)
    assert pool.num_free == num_blocks - 1


def check_step(chunks, requests, pool, max_tokens, max_requests):
    assert 0 < sum(chunk.count for chunk in chunks) <= max_tokens + max_requests
    assert sum(chunk.count for chunk in chunks if chunk.count > 1) <= max_tokens
    assert len(chunks) <= max_requests
    owned = [block for r in requests for block in r.blocks]
    assert len(owned) == len(set(owned))
    assert 0 not in owned
    assert len(owned) + pool.num_free == pool.num_blocks - 1
    for chunk in chunks:
        end = chunk.start + chunk.count
        assert end == chunk.request.num_computed
        assert len(chunk.request.blocks) * pool.block_size >= end


@pytest.fixture(scope="module")
def llm():
    return LLM("embedded", cache_tokens=512)


def test_a_seed_decides_whatever_the_neighbours_are(llm):
    hot = SamplingParams(max_tokens=6, temperature=1.0, seed=3, ignore_eos=True)
    cold = SamplingParams(max_tokens=6, ignore_eos=True)
    alone = llm.generate(["weft"], hot)[0].token_ids
    among = llm.generate(["a", "weft", "bc"], [cold, hot, cold])[1].token_ids
    other = llm.generate(["weft"], SamplingParams(max_tokens=6, temperature=1.0, seed=4))[0]
    assert alone == among != other.token_ids


def test_stop_ids_end_a_request_and_stay_out_of_the_text(llm):
    free = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=5, ignore_eos=True))[0]
    stop = free.token_ids[2]
    first = free.token_ids.index(stop)
    done = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=5, stop_token_ids=(stop,)))[0]
    assert done.finish_reason == "stop"
    assert done.token_ids == free.token_ids[: first + 1]


def test_an_aborted_request_frees_its_blocks(llm):
    free = llm.engine.scheduler.pool.num_free
    llm.engine.add(900, [1, 2, 3], SamplingParams(max_tokens=50))
    llm.engine.step()
    assert llm.engine.scheduler.pool.num_free < free
    llm.engine.abort(900)
    assert llm.engine.scheduler.pool.num_free == free
    assert not llm.engine.has_work


@given(st.text())
def test_byte_tokenizer_is_reversible(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text
