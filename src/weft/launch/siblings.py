"""Ranks on this machine that are there but stopped, read from Linux's /proc."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from weft.errors import FrozenRankError

LOOK_S: Final = 0.5
_FROZEN_S: Final = 10.0
_PROC: Final = Path("/proc")


class FrozenRanks:
    """Asked every LOOK_S, names a child of ``parent`` that has been stopped for 10 s.

    Looks are counted and no clock is read: a job that is stopped whole and goes on is well.
    A slow rank is never stopped, however long it loads.
    """

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._stopped: dict[int, int] = {}

    def check(self) -> None:
        """Raise FrozenRankError for a frozen rank, which is killed: nothing else ends it.

        A stopped process keeps the signal that should end it until it goes on.
        """
        stopped = set(_stopped_children(self._parent))
        self._stopped = {pid: self._stopped.get(pid, 0) + 1 for pid in stopped}
        for pid, looks in self._stopped.items():
            rank = _rank_of(pid)
            if looks * LOOK_S > _FROZEN_S and rank is not None:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                raise FrozenRankError(
                    f"rank {rank} does not answer (frozen or stuck: process {pid} has been stopped "
                    f"for {_FROZEN_S:.0f} s)"
                )


def _stopped_children(parent: int) -> Iterator[int]:
    for path in _PROC.glob(f"{parent}/task/*/children"):
        for pid in map(int, _read(path).split()):
            state = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
            if state and state[0] == "T":
                yield pid


def _rank_of(pid: int) -> str | None:
    variables = _read(_PROC / str(pid) / "environ").split("\0")
    return next((text[5:] for text in variables if text.startswith("RANK=")), None)


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""
