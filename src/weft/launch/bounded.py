"""Calls and processes that may never come back, given up on after a while."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

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


def end(process: subprocess.Popen[Any], wait_s: float) -> None:
    """Wait for ``process``, then terminate it, then kill it; each has ``wait_s`` (s) to act."""
    for act in (None, process.terminate, process.kill):
        if act is not None:
            act()
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue
        return
