"""Growing text and stop strings, against decoding and cutting everything at once."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.engine.request import SamplingParams
from weft.engine.tokenizer import ByteTokenizer
from weft.errors import WorkloadError
from weft.serve.engine_client import EngineLostError, QueueFullError, TokenEvent
from weft.serve.streams import OpenStreams
from weft.serve.text import GrowingText, IdTokenizer, StopStrings
from weft.serve.wire import Meeting, Submit, new_key


@given(st.text(max_size=30), st.lists(st.integers(1, 5), max_size=40))
def test_pieces_are_whole_characters_and_add_up(text, sizes):
    tokens = list(text.encode())
    growing = GrowingText(ByteTokenizer())
    pieces, rest = [], tokens
    for size in sizes:
        pieces.append(growing.add(rest[:size]))
        rest = rest[size:]
    pieces.append(growing.add(rest, last=True))
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


@given(st.lists(st.integers(0, 400), max_size=60))
def test_any_tokens_come_out_in_the_end(tokens):
    growing = GrowingText(ByteTokenizer())
    pieces = [growing.add([token]) for token in tokens]
    assert all(len(piece) <= 8 for piece in pieces)
    growing.add([], last=True)


@given(
    st.text("abc", max_size=25),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), max_size=30),
)
def test_stop_strings_cut_where_one_cut_of_the_whole_would(text, stops, sizes):
    cutter = StopStrings(stops)
    given_out, rest = "", text
    for size in sizes:
        if cutter.hit:
            break
        given_out += cutter.add(rest[:size])
        rest = rest[size:]
    if not cutter.hit:
        given_out += cutter.add(rest, last=True)
    places = [text.find(stop) for stop in stops if stop in text]
    assert cutter.hit == bool(places)
    if places:
        # What is given out never holds a stop string, and is a beginning of the text.
        assert text.startswith(given_out)
        assert not any(stop in given_out for stop in stops)
    else:
        assert given_out == text


def test_models_without_tokenizer_files():
    assert IdTokenizer().decode([5, 7]) == "5 7 "
    with pytest.raises(WorkloadError, match="token ids"):
        IdTokenizer().encode("x")


def test_streams_pass_tokens_errors_and_aborts():
    async def main() -> None:
        streams, aborted = OpenStreams(), []
        first, second, third = (streams.open(aborted.append, 3) for _ in range(3))
        with pytest.raises(QueueFullError):
            streams.open(aborted.append, 3)
        streams.put(0, TokenEvent(token_id=1))
        streams.put(0, TokenEvent(token_id=2, finish_reason="length"))
        assert [[e.token_id for e in events] async for events in first] == [[1, 2]]
        second.abort()
        second.abort()
        assert [events async for events in second] == []
        assert aborted == [1]
        streams.put(99, TokenEvent(token_id=1))
        streams.fail("gone")
        with pytest.raises(EngineLostError, match="gone"):
            _ = [events async for events in third]
        streams.drop(1)
        assert len(streams) == 0

    asyncio.run(main())


def test_the_meeting_survives_the_environment():
    meeting = Meeting(host="127.0.0.1", port=5, key=new_key())
    assert Meeting.from_environment({"WEFT_SERVE_MEETING": meeting.variable()}) == meeting
    assert Meeting.from_environment({}) is None
    assert Submit(number=1, prompt=(1,), sampling=SamplingParams()).number == 1
