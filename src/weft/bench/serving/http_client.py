"""A callback HTTP/1.1 client: one ``write`` a request, one call a received segment.

``httptools`` (the parser of uvicorn) reads the protocol; this file only adds keep-alive
connections and hands each body segment, with the time it was read from the socket, to the
request it belongs to. No task, no future and no await per request or per chunk: that is
what keeps the client's own time out of the figures (docs/bench-serve.md compares).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from weft.errors import UserError

CLOSED = "connection closed before the end of the answer"
"""The error of an answer whose end is the end of the connection (or is missing)."""


class ResponseSink(Protocol):
    """Who receives one response; every time is ``time.perf_counter`` in seconds."""

    def on_status(self, status: int) -> None: ...

    def on_bytes(self, body: bytes, now_s: float) -> None: ...

    def on_end(self, error: str | None, now_s: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ServerAddress:
    """Where a server listens."""

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_url(url: str) -> ServerAddress:
    """``http(s)://host[:port][/prefix]``; a trailing ``/v1`` is dropped; UserError otherwise."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise UserError(f"`url` {url}: {error}; write http://host:port") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UserError(f"`url` {url}: write http://host:port or https://host:port")
    return ServerAddress(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or (443 if parts.scheme == "https" else 80),
        prefix=parts.path.rstrip("/").removesuffix("/v1"),
    )


class _Connection(asyncio.Protocol):
    """One keep-alive connection; at most one request on it at a time."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._sink: ResponseSink | None = None
        self._now_s = 0.0
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def send(self, request: bytes, sink: ResponseSink) -> None:
        self._sink = sink
        self._transport.write(request)

    def abort(self) -> None:
        self._sink = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(f"malformed HTTP: {error}")
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        self._now_s = time.perf_counter()
        self._finish(f"connection lost: {exc}" if exc else CLOSED)

    def on_headers_complete(self) -> None:
        if self._sink is not None:
            self._sink.on_status(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        if self._sink is not None:
            self._sink.on_bytes(body, self._now_s)

    def on_message_complete(self) -> None:
        keep = self._parser.should_keep_alive()
        self._finish(None)
        if not keep:
            self._transport.close()
        elif self.usable:
            self._pool.release(self)

    def _finish(self, error: str | None) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.on_end(error, self._now_s)


@dataclass(kw_only=True)
class ConnectionPool:
    """Keep-alive connections to one endpoint, as many as requests are open at once."""

    endpoint: ServerAddress
    _free: list[_Connection] = field(default_factory=list)
    _open: set[_Connection] = field(default_factory=set)
    _dialling: set[asyncio.Task[None]] = field(default_factory=set)

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self.endpoint.scheme == "https" else None

    def submit(self, request: bytes, sink: ResponseSink) -> Callable[[], None]:
        """Send ``request``; the answer goes to ``sink``.

        Returns what gives the request up: after it, ``sink`` hears nothing more.
        """
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                connection.send(request, sink)
                return connection.abort
        dial = _Dial(self, request, sink)
        self._dialling.add(dial.task)
        dial.task.add_done_callback(self._dialling.discard)
        return dial.give_up

    def release(self, connection: _Connection) -> None:
        self._free.append(connection)

    def opened(self, connection: _Connection) -> None:
        self._open.add(connection)

    def forget(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    def close(self) -> None:
        """Drop every connection."""
        for task in tuple(self._dialling):
            task.cancel()
        for connection in tuple(self._open):
            connection.abort()


class _Dial:
    """A request that had to open its own connection."""

    def __init__(self, pool: ConnectionPool, request: bytes, sink: ResponseSink) -> None:
        self._pool = pool
        self._connection: _Connection | None = None
        self.task = asyncio.ensure_future(self._connect(request, sink))

    async def _connect(self, request: bytes, sink: ResponseSink) -> None:
        pool = self._pool
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(pool), pool.endpoint.host, pool.endpoint.port, ssl=pool.tls
            )
        except OSError as error:
            sink.on_end(f"cannot connect: {error}", time.perf_counter())
            return
        pool.opened(connection)
        self._connection = connection
        connection.send(request, sink)

    def give_up(self) -> None:
        self.task.cancel()
        if self._connection is not None:
            self._connection.abort()


def request_bytes(
    endpoint: ServerAddress, path: str, body: bytes | None, headers: dict[str, str]
) -> bytes:
    """One whole HTTP/1.1 request: POST with a JSON body, GET without."""
    lines = [
        f"{'GET' if body is None else 'POST'} {endpoint.prefix}{path} HTTP/1.1",
        f"Host: {endpoint.authority}",
        "Accept: text/event-stream, application/json",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")
