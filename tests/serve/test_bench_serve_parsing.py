"""Server-sent events cut anywhere, and the records made from them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.bench.serving.http_client import CLOSED, parse_url
from weft.bench.serving.records import RequestRecord, RequestSpec
from weft.bench.serving.sse import EventParser
from weft.bench.serving.stream import StreamSink
from weft.errors import UserError

lines = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)


@given(
    events=st.lists(st.lists(lines, min_size=1, max_size=3), max_size=6),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    space=st.sampled_from(["", " "]),
    data=st.data(),
)
def test_events_are_the_same_wherever_the_bytes_are_cut(events, ending, space, data):
    events = [[(space and line) or line.lstrip(" ") for line in event] for event in events]
    text = "".join(
        f": ping{ending}event: x{ending}"
        + "".join(f"data:{space}{line}{ending}" for line in event)
        + ending
        for event in events
    ).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parser = EventParser()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        got += parser.feed(text[start:end])
    assert got == ["\n".join(event).encode() for event in events]


def sink_for(status: int = 200) -> tuple[StreamSink, list[RequestRecord]]:
    done: list[RequestRecord] = []
    spec = RequestSpec(prompt_tokens=1, output_tokens=4)
    sink = StreamSink(RequestRecord(index=0, spec=spec, scheduled_s=0.0), done.append)
    sink.on_status(status)
    return sink, done


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def test_a_chat_answer_with_running_usage():
    sink, done = sink_for()
    usage = {"prompt_tokens": 7, "completion_tokens": 0}
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": usage}
    sink.on_bytes(event(role), 1.0)
    text = {"choices": [{"delta": {"content": "a"}}], "usage": usage | {"completion_tokens": 2}}
    sink.on_bytes(event(text), 2.0)
    last = {"choices": [], "usage": usage | {"completion_tokens": 2}}
    sink.on_bytes(event(last) + b"data: [DONE]\n\n", 3.0)
    sink.on_end(None, 3.5)
    (record,) = done
    assert record.completed
    assert list(record.chunk_s) == [1.0, 2.0]
    assert list(record.chunk_tokens) == [0, 2]
    assert list(record.chunk_content) == [0, 1]
    assert (record.prompt_tokens, record.output_tokens, record.end_s) == (7, 2, 3.5)


def test_each_kind_of_content_counts():
    for delta in ({"content": "x"}, {"reasoning_content": "x"}, {"tool_calls": [{}]}):
        sink, done = sink_for()
        sink.on_bytes(event({"choices": [{"delta": delta, "finish_reason": "stop"}]}), 1.0)
        sink.on_end(None, 1.0)
        assert done[0].completed
        assert list(done[0].chunk_content) == [1]


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (503, b'{"error": {"message": "busy"}}', None, "status 503: busy"),
        (502, b"<html>", None, "status 502: <html>"),
        (200, b"", None, "no chunk with choices"),
        (200, event({"choices": [{"text": "a"}]}), None, "without finish_reason"),
        (200, event({"choices": [{"text": "a"}]}), CLOSED, CLOSED),
        (200, b"data: {broken\n\n", None, "unreadable event"),
        (200, b"data: [1, 2]\n\n", None, "unreadable event"),
        (200, event({"error": {"message": "lost rank 1"}}), None, "lost rank 1"),
    ],
)
def test_failures_say_what_happened(status, body, error, said):
    sink, done = sink_for(status)
    sink.on_bytes(body, 1.0)
    sink.on_end(error, 2.0)
    sink.on_end("twice", 3.0)
    assert len(done) == 1
    assert said in (done[0].error or "")


def test_an_answer_that_ends_with_its_connection_is_whole():
    sink, done = sink_for()
    sink.on_bytes(event({"choices": [{"text": "a"}]}) + b"data: [DONE]\n\n", 1.0)
    sink.on_end(CLOSED, 2.0)
    assert done[0].completed


def test_urls():
    assert parse_url("http://h:81/v1").authority == "h:81"
    assert parse_url("http://h/a/v1/").prefix == "/a"
    assert parse_url("https://h").port == 443
    assert parse_url("http://[::1]:9").authority == "[::1]:9"
    for wrong in ("h:80", "ftp://h", "http://", "http://h:x"):
        with pytest.raises(UserError, match="`url`"):
            parse_url(wrong)
