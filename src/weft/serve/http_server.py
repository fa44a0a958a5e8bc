"""Runs the application under uvicorn until a signal ends it."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from fastapi import FastAPI

from weft.errors import EnvironmentUnavailable, UserError

MOST_PORT: Final = 65535
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; EnvironmentUnavailable where the address cannot be had."""
    if not 0 <= port <= MOST_PORT:
        raise UserError(f"--port {port}: must be 0 to {MOST_PORT}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        busy = error.errno == errno.EADDRINUSE
        reason = "is in use; choose another --port" if busy else f"cannot be bound: {error}"
        raise EnvironmentUnavailable(f"{host}:{port} {reason}") from None
    listener.listen(4096)
    return listener


def run_http(app: FastAPI, listener: socket.socket, *, drain_s: float) -> None:
    """Serve until SIGINT or SIGTERM; open requests get ``drain_s`` to end."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=max(1, round(drain_s)),
        timeout_keep_alive=30,
        lifespan="on",
    )
    asyncio.run(_Server(config).serve(sockets=[listener]))


class _Server(uvicorn.Server):
    """Leaves with success after a signal: uvicorn would raise the signal again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
