"""The EngineClient of a real engine: ranks in processes of their own, met over a socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from typing import Any, Final

from weft.engine.request import SamplingParams
from weft.errors import EnvironmentUnavailable, UserError, WeftError
from weft.launch.bounded import end
from weft.serve.engine_client import (
    EngineLimits,
    EngineLostError,
    EngineStats,
    QueueFullError,
    StepTimes,
    TokenEvent,
)
from weft.serve.streams import Inbox, OpenRequests
from weft.serve.wire import (
    Abort,
    Command,
    Hello,
    MeetingPoint,
    Profile,
    StepDone,
    Stop,
    Submit,
    new_key,
    receive,
    send,
    socket_of,
)

_LEAVE_S: Final = 4.0
_REASON_S: Final = 6.0
_PROFILE_S: Final = 30.0
_GONE: Final = "the engine's process is gone"
_ERROR: Final = "weft: error: "


@dataclass(kw_only=True, eq=False)
class _Replica:
    """One leader's connection, owned by the event loop."""

    writer: asyncio.StreamWriter
    limits: EngineLimits
    open: set[int] = field(default_factory=set)
    stats: EngineStats = field(default_factory=EngineStats)
    profile: asyncio.Future[tuple[StepTimes, ...]] | None = None
    seen_s: float = field(default_factory=time.monotonic)

    def tell(self, command: Command) -> None:
        send(self.writer, command)


class RemoteEngine:
    """Waits for the leader of each replica, spreads requests over them, watches them.

    ``spawn`` starts the ranks (it gets the meeting) and may be None where a launcher
    started them. A replica that says nothing for ``stall_s`` makes the server not ready.
    """

    def __init__(
        self,
        spawn: Callable[[MeetingPoint], subprocess.Popen[str]] | None = None,
        *,
        host: str = "127.0.0.1",
        bind: str = "127.0.0.1",
        stall_s: float = 10.0,
    ) -> None:
        self._listener = Listener((bind, 0), authkey=(key := new_key()), backlog=64)
        self.meeting = MeetingPoint(host=host, port=self._listener.address[1], key=key)
        self._spawn, self._stall_s = spawn, stall_s
        self._process: subprocess.Popen[str] | None = None
        self._replicas: dict[int, _Replica] = {}
        self._num_replicas: int | None = None
        self._requests = OpenRequests()
        self._owner: dict[int, _Replica] = {}
        self._failure: str | None = None
        self._gone = asyncio.Event()
        self._conversations: set[asyncio.Task[None]] = set()
        self._last_line = ""
        self._exit_code: int | None = None
        self._closing = False

    @property
    def limits(self) -> EngineLimits | None:
        first = next(iter(self._replicas.values()), None)
        return first.limits if first else None

    @property
    def stats(self) -> EngineStats:
        return EngineStats.of_all([replica.stats for replica in self._replicas.values()])

    @property
    def trouble(self) -> str | None:
        if self._failure is not None:
            return self._failure
        if self._num_replicas is None or len(self._replicas) < self._num_replicas:
            return "the engine is starting"
        oldest_s = min(replica.seen_s for replica in self._replicas.values())
        if time.monotonic() - oldest_s > self._stall_s:
            return f"the engine has said nothing for more than {self._stall_s:g} s"
        return None

    def submit(self, prompt: Sequence[int], sampling: SamplingParams, inbox: Inbox) -> int:
        if self._failure is not None or self.limits is None:
            raise EngineLostError(self.trouble or "the engine is starting")
        replica = min(self._replicas.values(), key=lambda one: len(one.open))
        if len(replica.open) >= replica.limits.max_open:
            raise QueueFullError(
                f"{len(self._requests)} requests are open, the most this server takes; try later"
            )
        number = self._requests.open(inbox)
        replica.open.add(number)
        self._owner[number] = replica
        replica.tell(Submit(number=number, prompt=tuple(prompt), sampling=sampling))
        return number

    def abort(self, number: int) -> None:
        self._requests.drop(number)
        replica = self._owner.get(number)
        if replica is not None:
            self._forget(number)
            replica.tell(Abort(number=number))

    def fail_open(self, reason: str) -> None:
        for number in list(self._owner):
            self._owner[number].tell(Abort(number=number))
            self._forget(number)
        self._requests.fail(reason)

    async def start(self) -> None:
        """Start the ranks and return at once; ``trouble`` says when they are up."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._accept, args=(loop,), daemon=True).start()
        if self._spawn is not None:
            self._process = self._spawn(self.meeting)
            threading.Thread(target=self._watch, args=(loop, self._process), daemon=True).start()

    async def start_profile(self) -> None:
        for replica in self._replicas.values():
            replica.tell(Profile(start=True))

    async def stop_profile(self) -> Sequence[Sequence[StepTimes]]:
        if self._failure is not None:
            raise EngineLostError(self._failure)
        for replica in self._replicas.values():
            replica.profile = asyncio.get_running_loop().create_future()
            replica.tell(Profile(start=False))
        waiting = [one.profile for one in self._replicas.values() if one.profile is not None]
        try:
            return await asyncio.wait_for(asyncio.gather(*waiting), _PROFILE_S)
        except TimeoutError:
            raise EngineLostError(f"no profile within {_PROFILE_S:g} s") from None

    async def lost(self) -> WeftError:
        await self._gone.wait()
        kind = UserError if self._exit_code == UserError.exit_code else EnvironmentUnavailable
        return kind(self._failure or _GONE)

    async def close(self) -> None:
        """Ask the ranks to leave; end them where they do not within seconds."""
        self._closing = True
        self.fail_open("the server is shutting down")
        for replica in self._replicas.values():
            replica.tell(Stop())
        if self._process is not None:
            await asyncio.to_thread(end, self._process, _LEAVE_S)
        self._listener.close()
        for replica in self._replicas.values():
            replica.writer.close()
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)

    # Threads: each hands what it learns to the event loop.

    def _accept(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._closing:
            try:
                connection = self._listener.accept()
                hello: Hello = connection.recv()
            except (AuthenticationError, OSError, EOFError):
                continue
            _tell(loop, self._join, hello, connection)

    def _watch(self, loop: asyncio.AbstractEventLoop, process: subprocess.Popen[str]) -> None:
        """Pass the ranks' messages on; their last error is kept: it says why they ended."""
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(_ERROR):
                self._last_line = line.strip().removeprefix(_ERROR)
            elif not self._closing:
                sys.stderr.write(line)
        self._exit_code = code = process.wait()
        _tell(loop, self._failed, self._last_line or f"the engine ended with exit code {code}")

    # Event loop.

    def _join(self, hello: Hello, connection: Connection) -> None:
        task = asyncio.create_task(self._converse(hello, connection))
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)

    async def _converse(self, hello: Hello, connection: Connection) -> None:
        reader, writer = await asyncio.open_connection(sock=socket_of(connection))
        connection.close()
        replica = _Replica(writer=writer, limits=hello.limits)
        self._num_replicas = hello.num_replicas
        self._replicas[hello.replica] = replica
        try:
            while True:
                self._stepped(replica, await receive(reader))
        except (asyncio.IncompleteReadError, OSError):
            self._lost_contact()

    def _stepped(self, replica: _Replica, done: StepDone) -> None:
        replica.seen_s = time.monotonic()
        replica.stats = done.stats
        if done.profile is not None and replica.profile and not replica.profile.done():
            replica.profile.set_result(done.profile)
        each = {number: iter(found) for number, found in done.logprobs.items()}
        for number, token, reason in done.tokens:
            logprobs = next(each[number], None) if number in each else None
            event = TokenEvent(
                token,
                reason,
                logprobs,
                done.prompt_logprobs.get(number, ()),
                done.cached.get(number, 0),
            )
            self._requests.put(number, event)
            if reason is not None:
                self._forget(number)
        for rejected in done.rejected:
            self._requests.fail(rejected.reason, [rejected.number])
            self._forget(rejected.number)

    def _forget(self, number: int) -> None:
        replica = self._owner.pop(number, None)
        if replica is not None:
            replica.open.discard(number)

    def _lost_contact(self) -> None:
        """Not ready at once; open requests wait a moment for the launcher to say why."""
        if self._closing or self._failure is not None:
            return
        self._failure = _GONE
        wait_s = 0.0 if self._process is None else _REASON_S
        asyncio.get_running_loop().call_later(wait_s, self._failed, self._failure)

    def _failed(self, reason: str) -> None:
        if self._closing:
            return
        if self._failure is None or reason != _GONE:
            self._failure = reason
        self._requests.fail(self._failure)
        self._owner.clear()
        self._gone.set()


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *values: Any) -> None:
    try:
        loop.call_soon_threadsafe(callback, *values)
    except RuntimeError:  # the loop has ended
        return
