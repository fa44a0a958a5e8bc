"""What graphs read of a step: every row with its request and place, padding that harms nothing."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from weft.engine.graph_inputs import DecodeInputs, ReceivedRows, RowInputs
from weft.engine.graphs import ROWS, sizes_up_to
from weft.engine.step import PromptRows, Step

BLOCK_SIZE = 4
LIKE = torch.empty(0)

sequences = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 30)), min_size=1, max_size=6
)  # rows of the step, positions before


def step_of(pairs: list[tuple[int, int]]) -> Step:
    lengths = np.array([count for count, _ in pairs])
    contexts = np.array([count + past for count, past in pairs])
    positions = np.concatenate([np.arange(past, past + count) for count, past in pairs])
    blocks = [list(range(1 + 20 * i, 21 + 20 * i)) for i in range(len(pairs))]
    return Step(
        chunks=[],
        token_ids=np.arange(len(positions)) + 100,
        positions=positions,
        fed_rows=np.full(len(positions), -1),
        query_lengths=lengths,
        context_lengths=contexts,
        blocks=blocks,
        rows=np.arange(len(pairs))[::-1] + 2,
        logit_rows=np.array([], dtype=np.int64),
        prompt_rows=PromptRows(),
        new_blocks=np.empty((0, 3), dtype=np.int64),
        entering=[],
    )


@given(sequences, st.integers(1, 16), st.integers(0, 50))
def test_every_row_is_in_one_piece_with_its_request_and_position(pairs, piece_rows, spare):
    step = step_of(pairs)
    size = step.num_tokens + spare
    received = ReceivedRows(size, 8, 0, LIKE)
    inputs = RowInputs(
        size, received, most_requests=6, piece_rows=piece_rows, block_size=BLOCK_SIZE
    )
    inputs.fill(step_of([(40, 30)] * 1) if size >= 40 else step, size, None)  # what was there
    inputs.fill(step, size, None)
    found = inputs.tensors(size)
    seen = {}
    for first, count, request, position in found.pieces.tolist():
        assert count <= piece_rows
        for i in range(count):
            assert first + i not in seen
            seen[first + i] = (request, position + i)
    owners = np.repeat(step.rows, step.query_lengths)
    assert seen == {
        row: (owners[row], step.positions[row]) for row in range(step.num_tokens)
    }  # and no piece for padding
    count = step.num_tokens
    assert found.token_ids[:count].tolist() == step.token_ids.tolist()
    assert found.fed_rows.tolist() == [-1] * size
    assert found.slots[:count].tolist() == step.slots(BLOCK_SIZE).tolist()
    assert found.slots[count:].eq(0).all()


@given(st.lists(st.tuples(st.just(1), st.integers(1, 30)), min_size=1, max_size=6))
def test_decodes_are_padded_with_the_row_of_nobody(pairs):
    inputs = DecodeInputs(8, ReceivedRows(8, 4, 0, LIKE), spare_row=99)
    step = step_of(pairs)
    inputs.fill(step_of([(1, 5)] * 6), 8, None)
    inputs.fill(step, 8, None)
    rows, lengths = inputs.rows_and_lengths(8)
    assert rows.tolist() == [*step.rows, *[99] * (8 - len(pairs))]
    assert lengths.tolist() == [*step.context_lengths, *[1] * (8 - len(pairs))]


def test_sizes_hold_what_is_asked_for():
    assert sizes_up_to(20, ROWS) == [32]
    assert sizes_up_to(33, ROWS) == [32, 64]
    assert sizes_up_to(10_000, ROWS) == list(ROWS)
    assert sizes_up_to(5, (1, 2, 4, 8), exact=True) == [1, 2, 4, 5]
    assert sizes_up_to(300, (1, 2, 4, 8), exact=True) == [1, 2, 4, 8]
