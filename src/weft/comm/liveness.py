"""Liveness: which ranks of the run are still there.

Every rank beats once a second into the rendezvous store from a thread of its own,
so it beats while it waits inside a collective. A failed operation asks who stopped
beating, and each rank watches the next one, so that a rank which hangs without
closing its connections ends the run too. So does a store that is silent: it lives in
the launcher of machine 0, or in rank 0 where no launcher is.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import partial
from typing import Final, NoReturn

from torch.distributed.distributed_c10d import Store

from weft.errors import FrozenRankError
from weft.launch.bounded import within
from weft.launch.worker import report_and_exit

_BEAT_S: Final = 1.0
_SILENCE_S: Final = 20.0
_LEFT: Final = "left"


class Liveness:
    """The beating thread of one rank. ``store`` must be this thread's own connection."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._set("0")
        self._thread = threading.Thread(target=self._run, name="weft-liveness", daemon=True)
        self._thread.start()

    def missing(self) -> tuple[int, ...]:
        """Ranks that did not beat during the last two beats; waits for that long.

        Rank 0 alone where the store itself is gone: it lives in rank 0's process.
        """
        try:
            before = within(_SILENCE_S, self._beats)
            time.sleep(2.5 * _BEAT_S)
            after = within(_SILENCE_S, self._beats)
        except (RuntimeError, TimeoutError):
            return (0,) if self._rank else ()
        others = (rank for rank in range(self._world_size) if rank != self._rank)
        return tuple(rank for rank in others if before[rank] == after[rank] != _LEFT)

    def leave(self) -> None:
        """Stop beating and say that this rank ends as planned, so that nobody misses it."""
        self._stop.set()
        self._thread.join(timeout=2 * _BEAT_S)
        with contextlib.suppress(RuntimeError, TimeoutError):
            within(2 * _BEAT_S, partial(self._set, _LEFT))

    def _run(self) -> None:
        watched = (self._rank + 1) % self._world_size
        last, silent_s = "", 0.0
        for count in range(1, 2**62):
            if self._stop.wait(_BEAT_S):
                return
            try:
                beat = within(_SILENCE_S, partial(self._beat, str(count), watched))
            except TimeoutError:
                _report_frozen(0)
            except RuntimeError:
                return
            silent_s = silent_s + _BEAT_S if beat == last != _LEFT else 0.0
            last = beat
            if silent_s > _SILENCE_S:
                _report_frozen(watched)

    def _beat(self, own: str, watched: int) -> str:
        self._set(own)
        return self._read(watched)

    def _set(self, beat: str) -> None:
        with self._lock:
            self._store.set(f"weft/beat/{self._rank}", beat)

    def _read(self, rank: int) -> str:
        with self._lock:
            key = f"weft/beat/{rank}"
            return self._store.get(key).decode() if self._store.check([key]) else ""

    def _beats(self) -> list[str]:
        return [self._read(rank) for rank in range(self._world_size)]


def _report_frozen(rank: int) -> NoReturn:
    report_and_exit(
        FrozenRankError(
            f"rank {rank} does not answer (frozen or stuck, or its launcher or machine is gone: "
            f"silent for {_SILENCE_S:.0f} s)"
        )
    )
