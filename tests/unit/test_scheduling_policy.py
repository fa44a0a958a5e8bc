"""The rule that shares a step's rows: what every engine's policy keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.errors import WorkloadError
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
