"""A server that answers on time and computes nothing, to measure the client itself.

``python tests/mock_server.py --port 0`` prints its address on one line and
streams ``max_tokens`` chunks with fixed delays to whoever asks. One process, one thread,
no framework: what a client reports beyond the delays is the client's own doing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import dataclass
from typing import Any, cast

import httptools


@dataclass(frozen=True, kw_only=True)
class MockBehaviour:
    """What the mock does with every request (delays from the arrival of the request)."""

    ttft_ms: float = 20.0
    itl_ms: float = 10.0
    tokens_per_chunk: int = 1
    role_chunk_ms: float | None = None
    """Send an empty role-only chunk after this long, as chat servers do; None sends none."""
    fail_every: int = 0
    """Answer every n-th request with status 503; 0 never."""
    cut_every: int = 0
    """Close every n-th stream after its first chunk; 0 never."""


class MockStream(asyncio.Protocol):
    """One client connection; requests on it are answered one after the other."""

    def __init__(self, behaviour: MockBehaviour, counter: list[int]) -> None:
        self._behaviour = behaviour
        self._counter = counter
        self._body = b""
        self._url = b""
        self._parser = httptools.HttpRequestParser(self)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._body = b""
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url.endswith(b"/models"):
            self._answer_json(200, {"object": "list", "data": [{"id": "mock", "object": "model"}]})
            return
        self._counter[0] += 1
        behaviour = self._behaviour
        if behaviour.fail_every and self._counter[0] % behaviour.fail_every == 0:
            self._answer_json(503, {"error": {"message": "mock overload", "type": "server_error"}})
            return
        self._start_stream(json.loads(self._body or b"{}"))

    def _answer_json(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} Mock\r\nContent-Type: application/json\r\n"
        self._transport.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    def _start_stream(self, request: dict[str, Any]) -> None:
        chat = self._url.endswith(b"/chat/completions")
        options = request.get("stream_options") or {}
        self._cut = bool(
            self._behaviour.cut_every and self._counter[0] % self._behaviour.cut_every == 0
        )
        self._chunks = _chunks(
            chat=chat,
            num_tokens=int(request.get("max_tokens") or request.get("max_completion_tokens") or 16),
            per_chunk=self._behaviour.tokens_per_chunk,
            continuous=bool(options.get("continuous_usage_stats")),
            usage=bool(options.get("include_usage")),
        )
        self._next = 0
        self._started = self._loop.time()
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        if chat and self._behaviour.role_chunk_ms is not None:
            self._loop.call_at(
                self._started + self._behaviour.role_chunk_ms / 1e3,
                self._transport.write,
                _framed(b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}'),
            )
        self._arm()

    def _arm(self) -> None:
        due_ms = self._behaviour.ttft_ms + self._next * self._behaviour.itl_ms
        self._timer = self._loop.call_at(self._started + due_ms / 1e3, self._send_chunk)

    def _send_chunk(self) -> None:
        if self._cut and self._next == 1:
            self._transport.close()
            return
        self._transport.write(self._chunks[self._next])
        self._next += 1
        if self._next < len(self._chunks) - 1:
            self._arm()
        else:
            self._transport.write(self._chunks[-1])


def _framed(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


_CACHE: dict[tuple[bool, int, int, bool, bool], list[bytes]] = {}


def _chunks(
    *, chat: bool, num_tokens: int, per_chunk: int, continuous: bool, usage: bool
) -> list[bytes]:
    """Every framed chunk of one answer; the last entry is the usage, the end mark and the end."""
    key = (chat, num_tokens, per_chunk, continuous, usage)
    if key not in _CACHE:
        counts = [*range(per_chunk, num_tokens, per_chunk), num_tokens]
        pieces = [_content(chat, count, num_tokens, continuous) for count in counts]
        final = json.dumps({"choices": [], "usage": _usage(num_tokens)}).encode()
        end = (_framed(final) if usage else b"") + _framed(b"[DONE]") + b"0\r\n\r\n"
        _CACHE[key] = [*(_framed(json.dumps(piece).encode()) for piece in pieces), end]
    return _CACHE[key]


def _content(chat: bool, count: int, num_tokens: int, continuous: bool) -> dict[str, Any]:
    text: dict[str, Any] = {"delta": {"content": " word"}} if chat else {"text": " word"}
    finish = "length" if count == num_tokens else None
    piece: dict[str, Any] = {
        "id": "mock-1",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": "mock",
        "choices": [{"index": 0, "finish_reason": finish, "logprobs": None} | text],
    }
    return piece | ({"usage": _usage(count)} if continuous else {})


def _usage(completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": 8,
        "completion_tokens": completion_tokens,
        "total_tokens": 8 + completion_tokens,
    }


async def start_mock(
    behaviour: MockBehaviour, *, host: str = "127.0.0.1", port: int = 0
) -> tuple[asyncio.Server, str]:
    """A listening mock server and its base URL."""
    counter = [0]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: MockStream(behaviour, counter), host, port, backlog=4096
    )
    return server, f"http://{host}:{server.sockets[0].getsockname()[1]}"


async def _serve(arguments: argparse.Namespace) -> None:
    behaviour = MockBehaviour(
        ttft_ms=arguments.ttft_ms,
        itl_ms=arguments.itl_ms,
        tokens_per_chunk=arguments.tokens_per_chunk,
        role_chunk_ms=arguments.role_chunk_ms,
        fail_every=arguments.fail_every,
        cut_every=arguments.cut_every,
    )
    server, url = await start_mock(behaviour, host=arguments.host, port=arguments.port)
    print(url, flush=True)
    await server.serve_forever()


def main() -> None:
    """Run until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--ttft-ms", type=float, default=20.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    parser.add_argument("--role-chunk-ms", type=float, default=None)
    parser.add_argument("--fail-every", type=int, default=0)
    parser.add_argument("--cut-every", type=int, default=0)
    arguments = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        run(_serve(arguments))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
