"""Growing text and stop strings, against decoding and cutting everything at once."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.engine.request import SamplingParams
from weft.engine.tokenizer import ByteTokenizer
from weft.errors import WorkloadError
from weft.serve.engine_client import EngineLostError, TokenEvent
from weft.serve.streams import Inbox, OpenRequests
from weft.serve.text import GrowingText, IdTokenizer, StopStrings
from weft.serve.wire import MeetingPoint, Submit, new_key


@given(st.text(max_size=60))
def test_pieces_are_whole_characters_and_add_up(text):
    tokens = list(text.encode())
    growing = GrowingText(ByteTokenizer())
    pieces = [growing.add(token) for token in tokens]
    pieces.append(growing.finish())
    assert growing.length == len(text)
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


@given(st.lists(st.integers(0, 400), max_size=60))
def test_any_tokens_come_out_in_the_end(tokens):
    growing = GrowingText(ByteTokenizer())
    pieces = [growing.add(token) for token in tokens]
    assert all(len(piece) <= 8 for piece in pieces)
    growing.finish()


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


def test_an_inbox_passes_tokens_and_errors_of_its_requests():
    async def main() -> None:
        requests, one, other = OpenRequests(), Inbox(), Inbox()
        first, second, third = (requests.open(inbox) for inbox in (one, one, other))
        requests.put(first, TokenEvent(1))
        requests.put(second, TokenEvent(5))
        requests.put(first, TokenEvent(2, "length"))
        assert [(n, e.token_id) for n, e in await one.get()] == [
            (first, 1),
            (second, 5),
            (first, 2),
        ]
        requests.put(first, TokenEvent(3))
        assert (requests.drop(first), requests.drop(second), requests.drop(second)) == (
            False,
            True,
            False,
        )
        requests.put(99, TokenEvent(1))
        requests.put(third, TokenEvent(7))
        requests.fail("gone")
        assert [event.token_id for _, event in await other.get()] == [7]
        for _ in range(2):
            with pytest.raises(EngineLostError, match="gone"):
                await other.get()
        one.close()
        assert await one.get() == []
        assert len(requests) == 0

    asyncio.run(main())


def test_the_meeting_survives_the_environment():
    meeting = MeetingPoint(host="127.0.0.1", port=5, key=new_key())
    assert MeetingPoint.from_environment({"WEFT_SERVE_MEETING": meeting.variable()}) == meeting
    assert MeetingPoint.from_environment({}) is None
    assert Submit(number=1, prompt=(1,), sampling=SamplingParams()).number == 1
