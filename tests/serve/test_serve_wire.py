"""The way of the bytes: nothing waits for an acknowledgement, nobody waits for another's prompt."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Client

import pytest
import uvloop

from fake_engine import FakeEngine
from serve_harness import Harness, serving
from weft.engine.request import SamplingParams
from weft.engine.tokenizer import ByteTokenizer
from weft.serve import bounded_http
from weft.serve.engine_client import EngineLimits, EngineLostError, EngineStats
from weft.serve.remote_engine import RemoteEngine
from weft.serve.streams import Inbox
from weft.serve.wire import Hello, StepDone, Submit, socket_of

BODY = {"model": "embedded", "prompt": "abcdefgh", "max_tokens": 30}


@pytest.fixture(scope="module")
def server() -> Iterator[Harness]:
    with serving(FakeEngine(step_s=0.0)) as harness:
        yield harness


def sends_at_once(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def stream(server: Harness, **fields: object) -> list[dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    body = json.dumps(BODY | {"stream": True} | fields)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    text = connection.getresponse().read().decode()
    connection.close()
    return [json.loads(event[6:]) for event in text.split("\n\n")[:-2]]


def test_http_sockets_send_at_once_and_the_loop_is_uvloop(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100)
        found = [
            sends_at_once(connection.transport.get_extra_info("socket"))
            for connection in server.server.server_state.connections
        ]
    assert found
    assert all(found)
    assert isinstance(server.loop, uvloop.Loop)


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"stop": "never"}])
def test_every_event_has_one_token_however_late_it_is_read(server, fields):
    events = stream(server, return_token_ids=True, **fields)
    assert {len(event["choices"][0]["token_ids"]) for event in events} == {1}
    assert len(events) == 30 * fields.get("n", 1)


def test_events_of_several_tokens_where_it_is_asked_for():
    with serving(stream_interval=4) as server:
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = stream(server, return_token_ids=True, stream_options=options)
        chunks = [event for event in events if event["choices"]]
        assert [len(one["choices"][0]["token_ids"]) for one in chunks] == [4] * 7 + [2]
        counts = [one["usage"]["completion_tokens"] for one in chunks]
        assert counts == [4, 8, 12, 16, 20, 24, 28, 30]


def test_usage_counts_every_event(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = stream(server, n=2, stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == [*range(1, 61), 60]


class SlowTokenizer(ByteTokenizer):
    """Takes as long as it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.released = threading.Event(), threading.Event()

    def encode(self, text: str) -> list[int]:
        self.begun.set()
        assert self.released.wait(60)
        return super().encode(text)


def test_a_long_prompt_does_not_stop_the_others():
    tokenizer = SlowTokenizer()
    with serving(tokenizer=tokenizer, max_prompt_tokens=100) as server:
        body = json.dumps(BODY | {"prompt": "x" * 1_500_000})
        slow = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        slow.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        assert tokenizer.begun.wait(60)
        quick = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        quick.request("GET", "/health")
        assert quick.getresponse().status == 200
        quick.close()
        tokenizer.released.set()
        assert slow.getresponse().status == 400
        slow.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X-Y: b\r\n" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"408"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"", b""),
    ],
)
def test_headers_are_bounded_in_size_and_time(server, monkeypatch, sent, status):
    monkeypatch.setattr(bounded_http, "HEADERS_S", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(sent)
        answer = b""
        try:
            while data := client.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
    assert answer[9:12] == status
    if status:
        body = json.loads(answer.split(b"\r\n\r\n", 1)[1])
        assert set(body["error"]) == {"message", "type", "param", "code"}


def test_a_slow_answer_is_no_slow_header(monkeypatch):
    monkeypatch.setattr(bounded_http, "HEADERS_S", 0.2)
    with serving(FakeEngine(step_s=0.05)) as server:
        assert len(stream(server)) == 30


def test_the_link_to_the_engine_sends_at_once_and_carries_tokens():
    commands, sockets = [], []

    def leader(engine: RemoteEngine) -> None:
        place = engine.meeting
        with Client((place.host, place.port), authkey=place.key) as link:
            sock = socket_of(link)
            sockets.append(sends_at_once(sock))
            sock.close()
            limits = EngineLimits(vocab_size=9, max_tokens=1 << 20, max_open=2)
            link.send(Hello(replica=0, num_replicas=1, limits=limits))
            commands.extend(link.recv() for _ in range(2))
            numbers = [one.number for one in commands]
            tokens = ((numbers[0], 3, None), (numbers[1], 4, "length"), (numbers[0], 5, "stop"))
            link.send(StepDone(tokens=tokens, rejected=(), stats=EngineStats(steps=7)))
            commands.append(link.recv())

    async def main() -> None:
        engine = RemoteEngine()
        await engine.start()
        thread = threading.Thread(target=leader, args=(engine,))
        thread.start()
        while engine.limits is None:
            await asyncio.sleep(0.01)
        inbox = Inbox()
        prompts = [list(range(9)) * 40_000, [1]]
        numbers = [engine.submit(prompt, SamplingParams(), inbox) for prompt in prompts]
        events = []
        while len(events) < 3:
            events += await inbox.get()
        assert [(n, e.token_id, e.finish_reason) for n, e in events] == [
            (numbers[0], 3, None),
            (numbers[1], 4, "length"),
            (numbers[0], 5, "stop"),
        ]
        assert engine.stats.steps == 7
        third = engine.submit([2], SamplingParams(), inbox)
        await asyncio.to_thread(thread.join)
        with pytest.raises(EngineLostError):
            assert await inbox.get() == []
        assert str(await engine.lost()) == "the engine's process is gone"
        await engine.close()
        assert [type(one) for one in commands] == [Submit, Submit, Submit]
        assert [one.number for one in commands] == [*numbers, third]
        assert [len(one.prompt) for one in commands] == [360_000, 1, 1]

    asyncio.run(main())
    assert sockets == [True]
