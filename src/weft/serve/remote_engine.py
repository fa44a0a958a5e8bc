"""The EngineClient of a real engine: ranks in processes of their own, met over a socket."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from typing import Any

from weft.engine.request import SamplingParams
from weft.serve.engine_client import (
    EngineLimits,
    EngineLostError,
    EngineStats,
    QueueFullError,
    StepTimes,
    TokenEvent,
    TokenStream,
)
from weft.serve.streams import OpenStreams
from weft.serve.wire import Abort, Command, Hello, Meeting, Profile, StepDone, Stop, Submit, new_key

_LEAVE_S = 4.0
_REASON_S = 6.0
_PROFILE_S = 30.0
_GONE = "the engine's process is gone"


@dataclass(kw_only=True, eq=False)
class _Replica:
    """One leader's connection. Two threads move the messages; the event loop owns the rest."""

    connection: Connection
    limits: EngineLimits
    open: set[int] = field(default_factory=set)
    stats: EngineStats = field(default_factory=EngineStats)
    profile: asyncio.Future[tuple[StepTimes, ...]] | None = None
    seen_s: float = field(default_factory=time.monotonic)
    outbox: queue.SimpleQueue[Command | None] = field(default_factory=queue.SimpleQueue)

    def write(self) -> None:
        while (command := self.outbox.get()) is not None:
            try:
                self.connection.send(command)
            except OSError:
                return


class RemoteEngine:
    """Waits for the leader of each replica, spreads requests over them, watches them.

    ``spawn`` starts the ranks (it gets the meeting) and may be None where a launcher
    started them. A replica that says nothing for ``stall_s`` makes the server not ready.
    """

    def __init__(
        self,
        spawn: Callable[[Meeting], subprocess.Popen[str]] | None = None,
        *,
        host: str = "127.0.0.1",
        bind: str = "127.0.0.1",
        stall_s: float = 10.0,
    ) -> None:
        self._listener = Listener((bind, 0), authkey=(key := new_key()), backlog=64)
        self.meeting = Meeting(host=host, port=self._listener.address[1], key=key)
        self._spawn, self._stall_s = spawn, stall_s
        self._process: subprocess.Popen[str] | None = None
        self._replicas: dict[int, _Replica] = {}
        self._num_replicas: int | None = None
        self._streams = OpenStreams()
        self._owner: dict[int, _Replica] = {}
        self._failure: str | None = None
        self._last_line = ""
        self._closing = False
        self._done = threading.Event()

    @property
    def limits(self) -> EngineLimits | None:
        first = next(iter(self._replicas.values()), None)
        return first.limits if first else None

    @property
    def stats(self) -> EngineStats:
        each = [replica.stats for replica in self._replicas.values()]
        if not each:
            return EngineStats()
        shares = [one.communication_share for one in each if one.communication_share is not None]
        return EngineStats(
            running=sum(one.running for one in each),
            waiting=sum(one.waiting for one in each),
            cache_use=sum(one.cache_use for one in each) / len(each),
            steps=sum(one.steps for one in each),
            communication_share=sum(shares) / len(shares) if shares else None,
        )

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

    def submit(self, prompt: Sequence[int], sampling: SamplingParams) -> TokenStream:
        if self._failure is not None or self.limits is None:
            raise EngineLostError(self.trouble or "the engine is starting")
        replica = min(self._replicas.values(), key=lambda one: len(one.open))
        if len(replica.open) >= replica.limits.max_open:
            raise QueueFullError(
                f"{len(self._streams)} requests are open, the most this server takes; try later"
            )
        stream = self._streams.open(self._abort, sys.maxsize)
        replica.open.add(stream.number)
        self._owner[stream.number] = replica
        replica.outbox.put(Submit(number=stream.number, prompt=tuple(prompt), sampling=sampling))
        return stream

    async def start(self) -> None:
        """Start the ranks and return at once; ``trouble`` says when they are up."""
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._accept, daemon=True).start()
        if self._spawn is not None:
            self._process = self._spawn(self.meeting)
            threading.Thread(target=self._watch_process, daemon=True).start()

    async def start_profile(self) -> None:
        for replica in self._replicas.values():
            replica.outbox.put(Profile(start=True))

    async def stop_profile(self) -> Sequence[Sequence[StepTimes]]:
        if self._failure is not None:
            raise EngineLostError(self._failure)
        for replica in self._replicas.values():
            replica.profile = self._loop.create_future()
            replica.outbox.put(Profile(start=False))
        waiting = [one.profile for one in self._replicas.values() if one.profile is not None]
        try:
            return await asyncio.wait_for(asyncio.gather(*waiting), _PROFILE_S)
        except TimeoutError:
            raise EngineLostError(f"no profile within {_PROFILE_S:g} s") from None

    async def close(self) -> None:
        """Ask the ranks to leave; end them where they do not within seconds."""
        self._closing = True
        self._done.set()
        for replica in self._replicas.values():
            replica.outbox.put(Stop())
        self._streams.fail("the server is shutting down")
        if self._process is not None:
            await asyncio.to_thread(self._end_process, self._process)
        self._listener.close()
        for replica in self._replicas.values():
            replica.outbox.put(None)

    def _end_process(self, process: subprocess.Popen[str]) -> None:
        for end in (None, process.terminate, process.kill):
            if end is not None:
                end()
            try:
                process.wait(_LEAVE_S)
            except subprocess.TimeoutExpired:
                continue
            return

    def _abort(self, number: int) -> None:
        self._streams.drop(number)
        replica = self._owner.pop(number, None)
        if replica is not None:
            replica.open.discard(number)
            replica.outbox.put(Abort(number=number))

    # Threads: each hands what it learns to the event loop.

    def _tell_loop(self, callback: Callable[..., None], *values: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *values)
        except RuntimeError:
            return

    def _accept(self) -> None:
        while not self._done.is_set():
            try:
                connection = self._listener.accept()
            except (AuthenticationError, OSError, EOFError):
                continue
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: Connection) -> None:
        try:
            hello: Hello = connection.recv()
            replica = _Replica(connection=connection, limits=hello.limits)
            threading.Thread(target=replica.write, daemon=True).start()
            self._tell_loop(self._joined, hello, replica)
            while True:
                self._tell_loop(self._stepped, replica, connection.recv())
        except (EOFError, OSError):
            self._tell_loop(self._lost_contact)

    def _watch_process(self) -> None:
        """Pass the ranks' messages on and keep the last one: it says why they ended."""
        process = self._process
        assert process is not None
        assert process.stderr is not None
        for line in process.stderr:
            if not self._closing:
                sys.stderr.write(line)
            self._last_line = line.strip() or self._last_line
        code = process.wait()
        reason = self._last_line.removeprefix("weft: error: ") or f"exit code {code}"
        self._tell_loop(self._failed, f"the engine ended: {reason}")

    # Event loop.

    def _joined(self, hello: Hello, replica: _Replica) -> None:
        self._num_replicas = hello.num_replicas
        self._replicas[hello.replica] = replica

    def _stepped(self, replica: _Replica, done: StepDone) -> None:
        replica.seen_s = time.monotonic()
        replica.stats = done.stats
        if done.profile is not None and replica.profile and not replica.profile.done():
            replica.profile.set_result(done.profile)
        for number, token, reason in done.tokens:
            logprobs = done.logprobs.get(number)
            event = TokenEvent(token_id=token, finish_reason=reason, logprobs=logprobs)
            self._streams.put(number, event)
            if reason is not None:
                self._forget(number)
        for rejected in done.rejected:
            self._streams.fail(rejected.reason, [rejected.number])
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
        self._loop.call_later(wait_s, self._failed, self._failure)

    def _failed(self, reason: str) -> None:
        if self._closing:
            return
        if self._failure is None or reason != _GONE:
            self._failure = reason
        self._streams.fail(self._failure)
        self._owner.clear()
