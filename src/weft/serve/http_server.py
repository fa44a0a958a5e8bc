"""Runs the application under uvicorn until a signal, or the end of the engine, ends it."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import uvicorn
from fastapi import FastAPI

from weft.errors import EnvironmentUnavailable, UserError, WeftError
from weft.serve.bounded_http import BoundedHttp
from weft.serve.engine_client import EngineClient
from weft.serve.wire import send_at_once

MOST_PORT: Final = 65535
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_AFTER_LOSS_S: Final = 5.0
_AFTER_DRAIN_S: Final = 3.0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; EnvironmentUnavailable where the address cannot be had."""
    if not 0 <= port <= MOST_PORT:
        raise UserError(f"`port` {port}: must be 0 to {MOST_PORT}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    send_at_once(listener)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        busy = error.errno == errno.EADDRINUSE
        reason = "is in use; choose another `port`" if busy else f"cannot be bound: {error}"
        raise EnvironmentUnavailable(f"`host` {host} `port` {port}: {reason}") from None
    listener.listen(4096)
    return listener


class HttpServer(uvicorn.Server):
    """Serves until SIGINT or SIGTERM; open requests get ``drain_s`` to end."""

    def __init__(self, app: FastAPI, engine: EngineClient, *, drain_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHttp,
                log_level="warning",
                timeout_graceful_shutdown=max(1, round(drain_s + _AFTER_DRAIN_S)),
                timeout_keep_alive=30,
                lifespan="on",
            )
        )
        self._engine, self._drain_s = engine, drain_s
        self._lost: WeftError | None = None

    def run_on(self, listener: socket.socket) -> None:
        """Blocks until the end; on uvloop where it is installed.

        Raises what the engine was lost by, some seconds after: until then clients and probes
        are told why.
        """
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve(sockets=[listener]))
        if self._lost is not None:
            raise self._lost

    async def main_loop(self) -> None:
        """Until a signal, or until the engine has been gone for a moment."""
        watch = asyncio.create_task(self._leave_with_engine())
        await super().main_loop()
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch

    async def _leave_with_engine(self) -> None:
        self._lost = await self._engine.lost()
        await asyncio.sleep(_AFTER_LOSS_S if self._engine.limits is not None else 0)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Streams that are still open after the drain end with an error of their own."""
        reason = "the server is shutting down"
        asyncio.get_running_loop().call_later(self._drain_s, self._engine.fail_open, reason)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave with success after a signal: uvicorn would raise the signal again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
