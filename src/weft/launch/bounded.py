"""Calls that may never come back, given up on after a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def within(limit_s: float, call: Callable[[], T]) -> T:
    """What ``call`` returns or raises; TimeoutError after ``limit_s`` (s), while it waits on.

    For the store of another machine: no timeout of torch's bounds a server that is frozen.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except Exception as error:  # noqa: BLE001 - handed to the caller
            done.set_exception(error)

    threading.Thread(target=run, name="weft-within", daemon=True).start()
    return done.result(limit_s)
