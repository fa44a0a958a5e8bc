"""An engine's own server from its start to its end, of which nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weft.errors import EnvironmentUnavailable

_MARK: Final = "WEFT_STUDY_SERVER"
"""In the environment of all that a server starts, whichever session or parent it has."""
_GRACE_S: Final = 20.0
_SHORT_GRACE_S: Final = 2.0
"""After Ctrl-C."""
_LAST_LINES: Final = 3


class EngineFailed(EnvironmentUnavailable):
    """A server that does not start, ends, or does not answer: the end of a case, not of the study."""


@dataclass(frozen=True, kw_only=True)
class EngineServer:
    """A server that answers at ``url``; ``process`` is None where somebody else started it."""

    url: str
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None

    def check(self, wait_s: float = 0.0) -> None:
        """Raise EngineFailed where its process has ended, or ends within ``wait_s``."""
        if self.process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(wait_s)
            ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise EngineFailed(f"its server ended ({ended}){_said(self.log)}")

    def wait_until_ready(self, path: str, limit_s: float, on_wait: Callable[[float], None]) -> None:
        """Return when ``path`` answers 200; ``on_wait`` is told the seconds waited."""
        start = time.monotonic()
        while not _answers(self.url + path):
            waited_s = time.monotonic() - start
            self.check()
            if waited_s > limit_s:
                raise EngineFailed(f"not ready within {limit_s:g} s{_said(self.log)}")
            on_wait(waited_s)
            time.sleep(0.3)

    def post(self, path: str, limit_s: float) -> None:
        """POST an empty object; EngineFailed for anything but a 200."""
        request = urllib.request.Request(  # noqa: S310 - the URL is the user's server
            self.url + path, b"{}", {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=limit_s) as answer:  # noqa: S310
                answer.read()
        except (OSError, ValueError) as error:
            raise EngineFailed(f"{path}: {error}") from None


@contextmanager
def started(
    command: Sequence[str], port: int, log: Path, extra: dict[str, str]
) -> Iterator[EngineServer]:
    """The server of ``command`` while the context is open; its output goes to ``log``."""
    mark = uuid.uuid4().hex
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | extra | {_MARK: mark},
                start_new_session=True,
            )
        except OSError as error:
            raise EngineFailed(f"{command[0]}: {error.strerror}") from None
    grace_s = _GRACE_S
    try:
        yield EngineServer(url=f"http://127.0.0.1:{port}", process=process, log=log)
    except KeyboardInterrupt:
        grace_s = _SHORT_GRACE_S
        raise
    finally:
        _end(process, mark, grace_s)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes], mark: str, grace_s: float) -> None:
    """SIGTERM, a bounded wait, then SIGKILL to everything that carries the mark."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    deadline = time.monotonic() + _GRACE_S
    while (left := _marked(mark)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        process.poll()
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_GRACE_S)


def _marked(mark: str) -> list[int]:
    """Processes that were started with the mark in their environment (Linux's /proc)."""
    wanted, found = f"{_MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _said(log: Path | None) -> str:
    """The last lines of its output."""
    if log is None:
        return ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    last = " | ".join([line for line in lines if line][-_LAST_LINES:])
    return f": {last[-500:]}" if last else ""
