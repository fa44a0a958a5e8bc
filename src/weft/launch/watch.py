"""What a launcher sees beside its own ranks' exit codes: frozen ranks, other launchers' errors.

The launchers of a run share the first error through the store of machine 0, so that each
of them ends its ranks and names the true cause.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from weft.errors import (
    CheckFailed,
    EnvironmentUnavailable,
    FrozenRankError,
    LostRankError,
    UserError,
    WeftError,
)
from weft.launch.bounded import within
from weft.launch.siblings import LOOK_S, FrozenRanks

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

SHUTDOWN_S: Final = 3
"""From the first failure on, ranks that were asked to end have this long ..."""
_LAST_WORD_S: Final = 9.0
"""... and then the launcher, for all of its waits together until its line is printed."""
_GRACE_S: Final = 3.0
_SILENCE_S: Final = 20.0
_CAUSE, _READ = "weft/launch/cause", "weft/launch/read"


def error_of(text: str, exit_code: int) -> WeftError:
    """The error that a process reported by text and exit code."""
    known = {1: CheckFailed, 2: UserError}
    return known.get(exit_code, EnvironmentUnavailable)(text)


class Watch:
    """The watching thread of one launcher; ``cause`` is what it ended the ranks for."""

    def __init__(self, *, address: str, port: int, node_rank: int, num_nodes: int) -> None:
        self._place, self._node_rank, self._num_nodes = (address, port), node_rank, num_nodes
        self._store: TCPStore | None = None
        self._stop, self._told = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="weft-watch", daemon=True)
        self.cause: WeftError | None = None
        self._is_known, self._ends_s = False, 0.0

    def __enter__(self) -> Self:
        if self._num_nodes > 1 and self._node_rank == 0:
            self._store = self._connect()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=self._left())
        if self._is_known and self._node_rank == 0:
            self._wait_for_the_others()

    def cause_of(self, own: WeftError, *, follows: bool) -> WeftError:
        """Why the run ends, where a rank of this launcher ended with ``own``.

        follows: ``own`` only says that a rank elsewhere is gone; its launcher knows why.
        """
        if follows and self._num_nodes > 1:
            self._told.wait(min(_GRACE_S, self._left()))
        if isinstance(self.cause, FrozenRankError):
            own = self.cause
        elif follows and self.cause is not None:
            return self.cause
        self._publish(own)
        return own

    def _left(self) -> float:
        """Seconds that are left for waiting, counted from the first time that this is asked."""
        self._ends_s = self._ends_s or time.monotonic() + _LAST_WORD_S
        return max(0.0, self._ends_s - time.monotonic())

    def _publish(self, error: WeftError) -> None:
        """Tell the other launchers."""
        self._stop.set()  # nothing is left to watch, and what is told here need not be read here
        self._thread.join(timeout=min(_GRACE_S, self._left()))
        if self._store is not None and not self._is_known:
            with contextlib.suppress(RuntimeError, TimeoutError):
                within(min(_GRACE_S, self._left()), partial(self._tell, self._store, error))

    def _tell(self, store: TCPStore, error: WeftError) -> None:
        store.set(_CAUSE, json.dumps([str(error), error.exit_code]))
        self._know(store)

    def _know(self, store: TCPStore) -> None:
        """Count the launchers that know, but for machine 0's, which waits for them."""
        self._is_known = True
        if self._node_rank:
            store.add(_READ, 1)

    def _wait_for_the_others(self) -> None:
        """Machine 0 holds the store: it stays until all others know, for a while."""
        with contextlib.suppress(RuntimeError):
            while self._store is not None and self._left():
                if self._store.add(_READ, 0) >= self._num_nodes - 1:
                    return
                time.sleep(0.1)

    def _connect(self) -> TCPStore:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        return TCPStore(
            *self._place,
            is_master=self._node_rank == 0,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),
            multi_tenant=True,
        )

    def _run(self) -> None:
        frozen = FrozenRanks(os.getpid())
        try:
            if self._num_nodes > 1 and self._store is None:
                self._store = self._connect()
            while not self._stop.wait(LOOK_S):
                frozen.check()
                if self._store is not None:
                    cause = within(_SILENCE_S, partial(self._read_cause, self._store))
                    if cause is not None:
                        self._end(cause)
        except FrozenRankError as error:
            self.cause = error  # and its process is killed: the launcher sees that
        except RuntimeError:
            self._end(LostRankError("machine 0 does not answer any more: its launcher has ended"))
        except TimeoutError:
            self._store = None
            self._end(
                LostRankError(
                    "machine 0 does not answer (its launcher is frozen or stuck, or the machine is "
                    f"gone: silent for {_SILENCE_S:.0f} s)"
                )
            )

    def _read_cause(self, store: TCPStore) -> WeftError | None:
        if not store.check([_CAUSE]):
            return None
        text, exit_code = json.loads(store.get(_CAUSE))
        self._know(store)
        return error_of(text, exit_code)

    def _end(self, error: WeftError) -> None:
        """Give the own ranks time to see it themselves, then end them through the launcher."""
        self.cause = error
        self._told.set()
        if not self._stop.wait(_GRACE_S):
            os.kill(os.getpid(), signal.SIGTERM)
            self._stop.set()
