"""Ranks that a script starts and calls: its own process waits for them and is none of them.

The script starts one process, the launcher, which starts the ranks as ``weft run`` does. All
of them connect to the script, so that each sees at once when it is gone. Nothing of the
script is imported again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, Final, Self, cast

from weft.errors import CommunicationError, EnvironmentUnavailable, LostRankError, WeftError
from weft.launch.bounded import end
from weft.launch.environment import is_launched, silence_libraries, slurm_task
from weft.launch.worker import worker

_MEETING: Final = "WEFT_OWN_RANKS"
_LAUNCHER: Final = -1
_JOIN_S: Final = 120.0
_LAST_WORD_S: Final = 20.0
"""From a rank's end on the launcher has this long to say why."""
_LEAVE_S: Final = 4.0


def is_joined() -> bool:
    """Whether a launcher or srun started this process as one of several ranks."""
    return is_launched() or slurm_task() is not None


def on_ranks(num_ranks: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns in this process, or on rank 0 of ranks that are started for it.

    It runs here where this process is a rank already, or is all that is needed; ``function``
    and what it takes and returns can be pickled.
    """
    if num_ranks == 1 or is_joined():
        return function(*arguments)
    with OwnRanks(num_ranks, nullcontext) as ranks:
        return ranks.call(_alone, function, *arguments)


def _alone(_: None, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class OwnRanks:
    """``num_ranks`` processes of this machine, each inside the context ``make(*arguments)``.

    Close it, or use it in ``with``; the end of this process ends them, too. Raises what a
    rank raised, LostRankError for one that was killed or is frozen; they have all ended then,
    unless all of them refused a call alike.
    """

    def __init__(
        self, num_ranks: int, make: Callable[..., AbstractContextManager[Any]], *arguments: Any
    ) -> None:
        key = secrets.token_bytes(32)
        listener = Listener(("127.0.0.1", 0), authkey=key, backlog=num_ranks + 1)
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "weft.launch.own_ranks", str(num_ranks)],
            env=os.environ | {_MEETING: f"{listener.address[1]} {key.hex()}"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._links: dict[int, Connection] = {}
        self._end = weakref.finalize(self, _end, self._process, self._links, os.getpid())
        try:
            self._meet(listener, num_ranks)
            self._tell((make, *arguments))
        except BaseException:
            self.close()
            raise
        finally:
            listener.close()

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        on_progress: Callable[[Any], object] | None = None,
    ) -> Any:
        """What ``function(context, *arguments)`` returns on rank 0; all ranks call it.

        on_progress: ``function`` has a last argument, whose calls on rank 0 come here.
        """
        if not self._end.alive:
            raise EnvironmentUnavailable("the ranks have ended: they were closed, or one was lost")
        return self._tell((on_progress is not None, function, *arguments), on_progress)

    def close(self) -> None:
        """End the ranks; bounded."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _meet(self, listener: Listener, num_ranks: int) -> None:
        done: Future[None] = Future()
        threading.Thread(
            target=_accept, args=(listener, num_ranks + 1, self._links, done), daemon=True
        ).start()
        end_s = time.monotonic() + _JOIN_S
        while time.monotonic() < end_s:
            with contextlib.suppress(NotYet):
                return done.result(0.1)
            if self._process.poll() is not None:
                raise self._cause()
        raise EnvironmentUnavailable(f"the ranks did not start within {_JOIN_S:.0f} s")

    def _tell(
        self, message: tuple[Any, ...], on_progress: Callable[[Any], object] | None = None
    ) -> Any:
        """Send to all ranks and wait for their answers; what they all refuse ends nothing."""
        try:
            for rank, link in self._links.items():
                with contextlib.suppress(OSError):  # the launcher says why it is gone
                    if rank != _LAUNCHER:
                        link.send(message)
            value, refusals = self._answers(on_progress)
        except BaseException:  # answers that come late would be taken for those of the next call
            self._links[_LAUNCHER].close()
            self.close()
            raise
        if refusals:
            raise refusals[0]
        return value

    def _answers(self, on_progress: Callable[[Any], object] | None) -> tuple[Any, list[WeftError]]:
        launcher, value, refusals = self._links[_LAUNCHER], None, list[WeftError]()
        waiting = {link: rank for rank, link in self._links.items() if rank != _LAUNCHER}
        while waiting:
            for link in cast("list[Connection]", wait([*waiting, launcher])):
                try:
                    kind, content = link.recv()
                except (EOFError, OSError):
                    raise self._cause(refusals) from None
                if kind == "progress":
                    assert on_progress is not None
                    on_progress(content)
                elif link is launcher:
                    raise _first_of(refusals, content)
                else:
                    rank = waiting.pop(link)
                    if kind == "error":
                        refusals.append(_of_rank(content, rank))
                    elif rank == 0:
                        value = content
        return value, refusals

    def _cause(self, said: Sequence[WeftError] = ()) -> WeftError:
        """Why the ranks ended, once the launcher has said what it saw."""
        launcher = self._links.get(_LAUNCHER)
        with contextlib.suppress(EOFError, OSError):
            if launcher is not None and launcher.poll(_LAST_WORD_S):
                return _first_of(said, launcher.recv()[1])
        return _first_of(said, LostRankError("the launcher of the ranks was lost; they have ended"))


def _first_of(said: Sequence[WeftError], seen: WeftError) -> WeftError:
    """A rank's own error comes before what the launcher saw and before those that followed it."""
    return next((one for one in said if not isinstance(one, CommunicationError)), seen)


def _of_rank(error: WeftError, rank: int) -> WeftError:
    """An error of the machine or the run says whose it is."""
    if isinstance(error, EnvironmentUnavailable) and not getattr(error, "names_rank", False):
        return type(error)(f"rank {rank}: {error}")
    return error


def _accept(
    listener: Listener, count: int, links: dict[int, Connection], done: Future[None]
) -> None:
    while len(links) < count:
        try:
            link = listener.accept()
            links[link.recv()] = link
        except AuthenticationError:
            continue
        except (OSError, EOFError):
            return
    done.set_result(None)


def _end(process: subprocess.Popen[bytes], links: Mapping[int, Connection], owner: int) -> None:
    """Ask the ranks to leave; end them where they do not within seconds."""
    if os.getpid() != owner:
        return
    for rank, link in links.items():
        if rank != _LAUNCHER:
            link.close()
    end(process, _LEAVE_S)
    if _LAUNCHER in links:
        links[_LAUNCHER].close()


def _connect(rank: int) -> Connection:
    port, key = os.environ[_MEETING].split()
    link = Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(key))
    link.send(rank)
    return link


def _launch(num_ranks: int) -> None:
    """The launcher: starts the ranks, says how they ended, ends them when the script is gone."""
    link = _connect(_LAUNCHER)
    threading.Thread(target=_end_with, args=(link,), daemon=True).start()
    from weft.launch.elastic import Launch, run_ranks

    try:
        run_ranks(["-m", "weft.launch.own_ranks"], Launch(ranks_per_node=num_ranks))
    except WeftError as error:
        with contextlib.suppress(OSError):
            link.send(("ended", error))


def _end_with(link: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        link.recv()
    os.kill(os.getpid(), signal.SIGTERM)


def _work_as_rank() -> None:
    """A rank: makes its context, then does what it is told until the script is gone."""
    rank = int(os.environ["RANK"])
    link = _connect(rank)
    try:
        make, *arguments = link.recv()
        with make(*arguments) as context:
            link.send(("value", None))
            while _answers_call(link, context, rank):
                pass
    except WeftError as error:
        with contextlib.suppress(OSError):
            link.send(("error", error))
        raise


def _answers_call(link: Connection, context: Any, rank: int) -> bool:
    try:
        tells, function, *arguments = link.recv()
    except (EOFError, OSError):
        return False
    if tells:
        arguments.append(None if rank else lambda content: link.send(("progress", content)))
    try:
        value = function(context, *arguments)
    except CommunicationError:
        raise
    except WeftError as error:
        link.send(("error", error))
    else:
        link.send(("value", None if rank else value))
    return True


if __name__ == "__main__":
    silence_libraries()
    if is_launched():
        with worker():
            _work_as_rank()
    else:
        _launch(int(sys.argv[1]))
