"""The rule that shares a step's rows: what every engine's policy keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.engine.block_pool import BlockPool
from weft.engine.request import Request, SamplingParams
from weft.engine.scheduler import Scheduler
from weft.errors import WorkloadError
from weft.prediction.simulation import Server, Stage, Visit, serve
from weft.scheduling.policy import Policy


@given(
    max_tokens=st.integers(1, 100),
    decoding=st.integers(0, 120),
    tokens=st.integers(1, 300),
    chunks=st.booleans(),
    alone=st.booleans(),
)
def test_a_prompt_gets_no_more_than_there_is(
    max_tokens: int, decoding: int, tokens: int, chunks: bool, alone: bool
) -> None:
    policy = Policy(max_tokens=max_tokens, max_requests=8, chunks=chunks)
    rows = policy.prompt_rows(decoding)
    given_rows = policy.rows_for(tokens, rows, alone=alone)
    assert 0 <= given_rows <= min(tokens, rows)
    if not chunks and tokens <= max_tokens:
        assert given_rows in (0, tokens)
    if chunks:
        assert given_rows == min(tokens, rows)


def test_decode_rows_count_or_stand_beside() -> None:
    assert Policy(max_tokens=10, max_requests=8).prompt_rows(4) == 6
    assert Policy(max_tokens=10, max_requests=8, counts_decode=False).prompt_rows(4) == 10
    assert Policy(max_tokens=10, max_requests=8, mixes=False).prompt_rows(4) == 10


def test_a_policy_without_room_is_refused() -> None:
    with pytest.raises(WorkloadError, match="max_tokens"):
        Policy(max_tokens=0, max_requests=1)


SIZES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=12)


def engine_steps(sizes: list[tuple[int, int]], rows: int, requests: int) -> list[tuple[int, int]]:
    """(prompt rows, decode rows) of every step of the engine's scheduler."""
    scheduler = Scheduler(BlockPool(200, 8), max_batch_tokens=rows, max_batch_requests=requests)
    for number, (prompt, decode) in enumerate(sizes):
        sampling = SamplingParams(max_tokens=decode, ignore_eos=True)
        scheduler.add(
            Request(number=number, prompt=[1] * prompt, sampling=sampling, stop_ids=frozenset())
        )
    steps = []
    while scheduler.has_work:
        chunks = scheduler.schedule()
        prompts = sum(chunk.count for chunk in chunks if not chunk.is_decode)
        steps.append((prompts, sum(chunk.is_decode for chunk in chunks)))
        sampling_chunks = [chunk for chunk in chunks if chunk.samples]
        scheduler.finish(sampling_chunks, [7] * len(sampling_chunks))
    return steps


@given(sizes=SIZES, rows=st.integers(1, 64), requests=st.integers(1, 9))
def test_the_simulation_fills_the_steps_that_the_engine_fills(
    sizes: list[tuple[int, int]], rows: int, requests: int
) -> None:
    simulated: list[tuple[int, int]] = []
    server = Server(
        policy=Policy(max_tokens=rows, max_requests=requests, counts_decode=False),
        step_us=lambda step: 1.0,
        cache_tokens=1600,
        watch=lambda step, count: simulated.extend(
            [(round(step.prefill_tokens), round(step.decode_sequences))] * count
        ),
    )
    serve(
        [Stage(servers=[server])], [Visit(prompt=prompt, decode=decode) for prompt, decode in sizes]
    )
    assert simulated == engine_steps(sizes, rows, requests)
