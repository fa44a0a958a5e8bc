"""Scheduler: steps ahead of their tokens, groups of a pipeline, rows, preemption."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from weft.engine.block_pool import BlockPool
from weft.engine.request import Request, SamplingParams
from weft.engine.scheduler import Scheduler
from weft.engine.step import Step


def make_request(number: int, prompt: int, max_tokens: int, stop: int = -1) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens)
    return Request(
        number=number, prompt=[1] * prompt, sampling=sampling, stop_ids=frozenset([stop])
    )


@st.composite
def loads(draw):
    sizes = st.tuples(st.integers(1, 30), st.integers(1, 20))
    return (
        draw(st.lists(sizes, min_size=1, max_size=9)),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 2)),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 4)),
        draw(st.integers(0, 2**32)),
    )


@settings(max_examples=150, deadline=None)
@given(loads())
def test_every_request_ends_and_all_is_given_back(load):
    """``lag`` steps are always launched before the oldest one's tokens are known."""
    requests, num_groups, lag, budget, at_once, seed = load
    generator = random.Random(seed)
    pool = BlockPool(16, 4)
    scheduler = Scheduler(
        pool, max_batch_tokens=budget, max_batch_requests=at_once, num_groups=num_groups
    )
    made = [make_request(i, p, d, stop=7) for i, (p, d) in enumerate(requests)]
    for request in made:
        scheduler.add(request)
    groups = [0] * num_groups
    for request in made:
        groups[request.group] += 1
    assert max(groups) - min(groups) <= 1
    under_way: list[Step] = []
    for tick in range(20000):
        if not (scheduler.has_work or under_way):
            break
        chunks = scheduler.schedule(tick % num_groups)
        assert sum(c.count for c in chunks if c.count > 1) <= budget
        assert len({c.request.row for c in chunks}) == len(chunks)
        assert all(c.request.group == tick % num_groups for c in chunks)
        if chunks:
            step = Step.of(chunks)
            assert step.num_tokens == sum(c.count for c in chunks) <= budget + at_once
            assert all(slot >= 4 for slot in step.slots(4)), "block 0 belongs to nobody"
            under_way.append(step)
        if len(under_way) > lag or (under_way and not chunks):
            done = under_way.pop(0)
            scheduler.finish(done.sampling, [generator.randrange(12) for _ in done.sampling])
    for request, (_, max_tokens) in zip(made, requests, strict=True):
        assert request.is_finished
        assert request.num_pending == 0
        assert len(request.output) == max_tokens or request.output[-1] == 7
        assert 7 not in request.output[:-1]
    assert pool.num_free == 15
    assert len(scheduler._rows) == at_once * num_groups


def test_a_decode_is_scheduled_before_its_token_is_known():
    scheduler = Scheduler(BlockPool(8, 4), max_batch_tokens=64, max_batch_requests=4)
    request = make_request(0, 5, 3)
    scheduler.add(request)
    first = Step.of(scheduler.schedule())
    second = Step.of(scheduler.schedule())
    third = Step.of(scheduler.schedule())
    assert not scheduler.schedule(), "three tokens were asked for"
    assert first.token_ids.tolist() == [1] * 5
    assert second.fed_rows.tolist() == [request.row]
    assert [c.token_index for c in (*first.chunks, *second.chunks, *third.chunks)] == [0, 1, 2]
    assert (second.positions[0], third.positions[0]) == (5, 6)
    for inputs, token in ((first, 4), (second, 5), (third, 6)):
        scheduler.finish(inputs.sampling, [token])
    assert request.output == [4, 5, 6]
    assert request.finish_reason == "length"


def test_tokens_after_a_stop_are_dropped():
    scheduler = Scheduler(BlockPool(8, 4), max_batch_tokens=64, max_batch_requests=4)
    request = make_request(0, 5, 9, stop=2)
    scheduler.add(request)
    steps = [Step.of(scheduler.schedule()) for _ in range(3)]
    assert scheduler.finish(steps[0].sampling, [2]) == steps[0].sampling
    assert scheduler.finish(steps[1].sampling, [8]) == []
    assert scheduler.finish(steps[2].sampling, [8]) == []
    assert request.output == [2]
    assert not scheduler.has_work


def test_rows_of_running_requests_do_not_cut_prompts():
    scheduler = Scheduler(BlockPool(64, 4), max_batch_tokens=16, max_batch_requests=4)
    scheduler.add(make_request(0, 16, 8))
    first = Step.of(scheduler.schedule())
    scheduler.finish(first.sampling, [5])
    scheduler.add(make_request(1, 16, 8))
    assert sorted(chunk.count for chunk in scheduler.schedule()) == [1, 16]
