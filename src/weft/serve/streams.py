"""The request side of an engine client: open streams, their queues and their limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from weft.serve.engine_client import EngineLostError, QueueFullError, TokenEvent


class QueuedStream:
    """A TokenStream that an event loop fills."""

    def __init__(self, number: int, on_abort: Callable[[int], None]) -> None:
        self.number = number
        self._on_abort = on_abort
        self._events: list[TokenEvent] = []
        self._wake = asyncio.Event()
        self._ended = False
        self._error: str | None = None

    def put(self, event: TokenEvent) -> None:
        self._events.append(event)
        self._ended |= event.finish_reason is not None
        self._wake.set()

    def fail(self, error: str) -> None:
        self._error = error
        self._wake.set()

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._wake.set()
            self._on_abort(self.number)

    async def __aiter__(self) -> AsyncIterator[Sequence[TokenEvent]]:
        while True:
            await self._wake.wait()
            self._wake.clear()
            events, self._events = self._events, []
            if events:
                yield events
            if self._error is not None:
                raise EngineLostError(self._error)
            if self._ended:
                return


class OpenStreams:
    """All open requests by number."""

    def __init__(self) -> None:
        self._streams: dict[int, QueuedStream] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, on_abort: Callable[[int], None], max_open: int) -> QueuedStream:
        """A new stream with a number of its own; QueueFullError above the limit."""
        if len(self._streams) >= max_open:
            raise QueueFullError(
                f"{len(self._streams)} requests are open, the most this server takes; try later"
            )
        stream = QueuedStream(self._next, on_abort)
        self._streams[self._next] = stream
        self._next += 1
        return stream

    def put(self, number: int, event: TokenEvent) -> None:
        """Pass an event on; events of requests that were given up are dropped."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.put(event)
            if event.finish_reason is not None:
                del self._streams[number]

    def drop(self, number: int) -> None:
        self._streams.pop(number, None)

    def fail(self, error: str, numbers: Sequence[int] | None = None) -> None:
        """End the given (or all) streams with an error."""
        for number in list(self._streams) if numbers is None else numbers:
            stream = self._streams.pop(number, None)
            if stream is not None:
                stream.fail(error)
