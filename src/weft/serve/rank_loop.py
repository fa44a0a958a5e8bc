"""Every rank's loop under ``weft serve``: take commands, step, tell the HTTP process.

The lowest rank of each replica is its leader. It alone talks with the HTTP process; before
each step it passes the commands on to the replica's other ranks, so that all of them make
the same calls in the same order.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Final

from weft.comm.groups import ProcessGroups
from weft.engine.engine import Engine
from weft.engine.request import FinishReason, Request
from weft.errors import EnvironmentUnavailable, ReplicaLeftError, UserError
from weft.serve.engine_client import EngineLimits, EngineStats, StepTimes
from weft.serve.step_profile import StepProfile, share_of
from weft.serve.wire import (
    Abort,
    Command,
    Hello,
    MeetingPoint,
    Profile,
    Rejected,
    StepDone,
    Stop,
    Submit,
    socket_of,
)

_IDLE_S: Final = 0.5
_JOINED_IDLE_S: Final = 0.02
"""Replicas that share experts wait for each other's idle loops before a step."""
_SAMPLE_EVERY: Final = 64


def serve_rank(
    engine: Engine,
    groups: ProcessGroups,
    meeting: MeetingPoint | None,
    max_waiting: int,
    profile_dir: Path | None = None,
) -> None:
    """Work until told to stop, or until the HTTP process is gone.

    ``meeting`` is needed on rank 0 only; it tells the others.
    """
    meeting = groups.host_broadcast(meeting, 0)
    leader = groups.layout.rank_of(stage=0, replica=groups.replica)
    link = None
    if groups.rank == leader:
        assert meeting is not None
        link = _Link(meeting, groups, engine, max_waiting)
    loop = _Loop(engine=engine, groups=groups, leader=leader, link=link, profile_dir=profile_dir)
    loop.run()


class _Link:
    """The leader's side of the connection."""

    def __init__(
        self, meeting: MeetingPoint, groups: ProcessGroups, engine: Engine, max_waiting: int
    ) -> None:
        try:
            self._connection: Connection = Client((meeting.host, meeting.port), authkey=meeting.key)
        except OSError as error:
            raise EnvironmentUnavailable(
                f"cannot reach the HTTP process at {meeting.host}:{meeting.port}: {error}"
            ) from None
        socket_of(self._connection).close()
        limits = EngineLimits(
            vocab_size=engine.spec.vocab_size,
            max_tokens=min(engine.spec.max_position, engine.scheduler.pool.capacity_tokens),
            max_open=engine.config.max_batch_requests * engine.scheduler.num_groups + max_waiting,
        )
        self._connection.send(
            Hello(replica=groups.replica, num_replicas=groups.layout.dp, limits=limits)
        )

    def commands(self, wait_s: float) -> list[Command]:
        """Everything that has arrived; Stop where the HTTP process is gone."""
        commands: list[Command] = []
        try:
            while self._connection.poll(0 if commands else wait_s):
                commands.append(self._connection.recv())
        except (EOFError, OSError):
            commands.append(Stop())
        return commands

    def tell(self, done: StepDone) -> None:
        """Send a step's outcome; a HTTP process that is gone shows at the next ``commands``."""
        try:
            self._connection.send(done)
        except OSError:
            return


class _Loop:
    """One rank's loop; ``link`` only on the leader."""

    def __init__(
        self,
        *,
        engine: Engine,
        groups: ProcessGroups,
        leader: int,
        link: _Link | None,
        profile_dir: Path | None,
    ) -> None:
        self._profile_dir = profile_dir
        self._engine, self._groups, self._leader, self._link = engine, groups, leader, link
        self._scope = f"serve{groups.replica}"
        self._steps, self._busy = 0, False
        self._ahead: list[Command] = []
        if link is not None and groups.layout.pp > 1:
            groups.host_broadcast(self._ahead, leader, self._scope)
        self._share: float | None = None
        self._profile: StepProfile | None = None
        self._profiled: tuple[StepTimes, ...] | None = None

    def run(self) -> None:
        while True:
            commands = self._agree_on_commands()
            if any(isinstance(command, Stop) for command in commands):
                self._engine.leave()
                return
            rejected = [reason for command in commands if (reason := self._apply(command))]
            try:
                self._busy = self._engine.goes_on()
            except ReplicaLeftError:
                return
            advanced = self._step() if self._busy else []
            if self._link is not None:
                self._link.tell(self._report(advanced, rejected))

    def _agree_on_commands(self) -> list[Command]:
        """The commands before this step, the same on every rank of the replica.

        In a pipeline they are sent one step ahead: the leader ends a step by sending to the
        next stage, which receives only in the step after, so nobody may wait for what the
        leader says in between.
        """
        layout = self._groups.layout
        if self._link is None:
            agreed: list[Command] = self._groups.host_broadcast(None, self._leader, self._scope)
            return agreed
        busy = self._busy or self._engine.has_work or bool(self._ahead)
        idle_s = _JOINED_IDLE_S if layout.joins_replicas else _IDLE_S
        commands = self._link.commands(0 if busy else idle_s)
        if layout.world_size > layout.dp:
            self._groups.host_broadcast(commands, self._leader, self._scope)
        if layout.pp == 1:
            return commands
        now, self._ahead = self._ahead, commands
        return now

    def _apply(self, command: Command) -> Rejected | None:
        try:
            if isinstance(command, Submit):
                self._engine.add(command.number, command.prompt, command.sampling)
            elif isinstance(command, Abort):
                self._engine.abort(command.number)
            elif isinstance(command, Profile):
                self._switch_profile(start=command.start)
        except UserError as error:
            assert isinstance(command, Submit)
            return Rejected(number=command.number, reason=str(error))
        return None

    def _switch_profile(self, *, start: bool) -> None:
        if start and self._profile is None:
            self._profile = StepProfile(self._engine, self._groups, self._profile_dir)
        elif not start and self._profile is not None:
            self._profiled, self._profile = self._profile.end(), None
            self._share = share_of(self._profiled) or self._share

    def _step(self) -> list[Request]:
        self._steps += 1
        on_cuda = self._groups.device.type == "cuda"
        if self._steps % _SAMPLE_EVERY or self._profile is not None or on_cuda:
            return self._engine.step()
        return self._sampled_step()

    def _sampled_step(self) -> list[Request]:
        """One step with every collective timed (on CUDA a graph has no calls to time)."""
        started_s = time.perf_counter()
        with self._groups.recording() as recorder:
            advanced = self._engine.step()
        spent_s = time.perf_counter() - started_s
        in_calls_s = sum(call.end_s - call.start_s for call in recorder.calls)
        share = in_calls_s / spent_s
        self._share = share if self._share is None else 0.75 * self._share + 0.25 * share
        return advanced

    def _report(self, advanced: Sequence[Request], rejected: Sequence[Rejected]) -> StepDone:
        scheduler = self._engine.scheduler
        pool = scheduler.pool
        stats = EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            cache_use=1 - pool.num_free / max(pool.num_blocks - 1, 1),
            steps=self._steps,
            communication_share=self._share,
            prefix_asked=scheduler.prefix.num_asked,
            prefix_hit=scheduler.prefix.num_hit,
            drafted=scheduler.num_drafted,
            accepted=scheduler.num_accepted,
        )
        failed = [one for one in advanced if one.finish_reason == "error"]
        went_on = Counter(one for one in advanced if one.finish_reason != "error")
        tokens = tuple(entry for one, count in went_on.items() for entry in _tokens(one, count))
        logprobs = {one.number: one.logprobs[-n:] for one, n in went_on.items() if one.logprobs}
        begun = [one for one in went_on if len(one.output) == went_on[one]]
        profile, self._profiled = self._profiled, None
        return StepDone(
            tokens=tokens,
            rejected=(*rejected, *(Rejected(number=o.number, reason=o.error) for o in failed)),
            stats=stats,
            logprobs=logprobs,
            prompt_logprobs={o.number: o.prompt_logprobs for o in begun if o.prompt_logprobs},
            cached={one.number: one.num_cached for one in begun if one.num_cached},
            profile=profile,
        )


def _tokens(request: Request, count: int) -> Iterator[tuple[int, int, FinishReason | None]]:
    """The last ``count`` tokens of a request; the very last one says whether it has ended."""
    for left, token in zip(reversed(range(count)), request.output[-count:], strict=True):
        yield request.number, token, None if left else request.finish_reason
