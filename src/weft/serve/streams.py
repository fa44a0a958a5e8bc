"""The request side of an engine client: who waits for which request's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from weft.serve.engine_client import EngineLostError, TokenEvent


class Inbox:
    """The tokens of one or several requests in the order in which they come; one reader."""

    def __init__(self) -> None:
        self._events: list[tuple[int, TokenEvent]] = []
        self._wake = asyncio.Event()
        self._error: str | None = None

    def put(self, number: int, event: TokenEvent) -> None:
        self._events.append((number, event))
        self._wake.set()

    def fail(self, error: str) -> None:
        self._error = error
        self._wake.set()

    def close(self) -> None:
        """Let the reader go: nothing more will come."""
        self._wake.set()

    async def get(self) -> Sequence[tuple[int, TokenEvent]]:
        """What came since the last call, at least one event unless closed.

        Raises EngineLostError when the engine is gone, after what came before.
        """
        await self._wake.wait()
        events, self._events = self._events, []
        if not events and self._error is not None:
            raise EngineLostError(self._error)
        if self._error is None:
            self._wake.clear()
        return events


class OpenRequests:
    """All open requests by number, each with the inbox of its reader."""

    def __init__(self) -> None:
        self._inboxes: dict[int, Inbox] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._inboxes)

    def open(self, inbox: Inbox) -> int:
        """The number of a new request."""
        number = self._next
        self._next += 1
        self._inboxes[number] = inbox
        return number

    def put(self, number: int, event: TokenEvent) -> None:
        """Pass an event on; events of requests that were given up are dropped."""
        inbox = self._inboxes.get(number)
        if inbox is not None:
            inbox.put(number, event)
            if event.finish_reason is not None:
                del self._inboxes[number]

    def drop(self, number: int) -> bool:
        """Forget a request; whether it was open."""
        return self._inboxes.pop(number, None) is not None

    def fail(self, error: str, numbers: Sequence[int] | None = None) -> None:
        """End the given (or all) requests with an error."""
        for number in list(self._inboxes) if numbers is None else numbers:
            inbox = self._inboxes.pop(number, None)
            if inbox is not None:
                inbox.fail(error)
