"""Before any body is parsed: the API key and the size of the body."""

from __future__ import annotations

import asyncio
import hmac
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weft.serve.errors import error_body

_OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})


class Guard:
    """Refuses requests without the key (401) and bodies above the limit (413)."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_body_bytes: int) -> None:
        self._app, self._key, self._limit = app, api_key, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"] not in _OPEN_PATHS and not self._allowed(headers.get(b"authorization")):
            await _refuse(send, 401, "missing or wrong API key: send it as a bearer token")
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:18]) > self._limit:
            await _refuse(send, 413, self._too_large)
            return
        await self._limited(scope, receive, send)

    @property
    def _too_large(self) -> str:
        return f"the body is larger than the {self._limit} bytes that this server takes"

    def _allowed(self, given: bytes | None) -> bool:
        if self._key is None:
            return True
        scheme, _, key = (given or b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key.encode())

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0
        refused = started = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise _TooLargeError
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            started = True
            if not refused:
                await send(message)

        try:
            await self._app(scope, counted, guarded)
        except _TooLargeError:
            refused = True
            await _refuse(send, 413, self._too_large)
        except asyncio.CancelledError:  # by uvicorn, once, where a request outlives the drain
            if not started:
                await _refuse(send, 503, "the server is shutting down")


class _TooLargeError(BaseException):
    """Not an Exception: must pass through the handlers of the application."""


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps(error_body(status, message)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
