"""The seam between HTTP and the engine: what the server needs of whatever generates tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from weft.engine.request import FinishReason, SamplingParams, TokenLogprobs
from weft.errors import EnvironmentUnavailable, WeftError

if TYPE_CHECKING:
    from weft.serve.streams import Inbox


class EngineLostError(EnvironmentUnavailable):
    """The engine, or one of its ranks, is gone; the message says why."""


class QueueFullError(WeftError):
    """The engine has as many open requests as it may have."""


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What a request may ask for."""

    vocab_size: int
    max_tokens: int
    """Prompt and output together: the model's positions or the cache, whichever is less."""
    max_open: int
    """Requests running and waiting at once."""


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """The engine now.

    ``prefix_hit`` of the ``prefix_asked`` tokens that requests had when they began to run were
    found in the cache. ``communication_share`` is of step time, of the last steps that were timed
    (None before). ``accepted`` of the ``drafted`` tokens that were guessed were right.
    """

    running: int = 0
    waiting: int = 0
    cache_use: float = 0.0
    steps: int = 0
    communication_share: float | None = None
    prefix_asked: int = 0
    prefix_hit: int = 0
    drafted: int = 0
    accepted: int = 0

    @staticmethod
    def of_all(each: Sequence[EngineStats]) -> EngineStats:
        """Several replicas as one: sums, and means of what is a share."""
        if not each:
            return EngineStats()
        shares = [one.communication_share for one in each if one.communication_share is not None]
        return EngineStats(
            running=sum(one.running for one in each),
            waiting=sum(one.waiting for one in each),
            cache_use=sum(one.cache_use for one in each) / len(each),
            steps=sum(one.steps for one in each),
            prefix_asked=sum(one.prefix_asked for one in each),
            prefix_hit=sum(one.prefix_hit for one in each),
            drafted=sum(one.drafted for one in each),
            accepted=sum(one.accepted for one in each),
            communication_share=sum(shares) / len(shares) if shares else None,
        )


@dataclass(frozen=True)
class TokenEvent:
    """One generated token; the last one of a request has a ``finish_reason``."""

    token_id: int
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: Sequence[TokenLogprobs] = ()
    """With the first token, of the prompt's tokens but the first, where they are wanted."""
    num_cached: int = 0
    """With the first token: the prompt's tokens that were found in the cache."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """One step of a replica's leader. Times are seconds since the epoch."""

    phase: str
    start_s: float
    end_s: float
    in_calls_s: dict[str, float]
    """Seconds inside the collectives of the step by operation."""


class EngineClient(Protocol):
    """Submit, abort, stats, alive."""

    @property
    def limits(self) -> EngineLimits | None:
        """None until the engine is up."""
        ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def trouble(self) -> str | None:
        """Why the engine cannot serve now (starting, lost a rank, stalled); None if it can."""
        ...

    def submit(self, prompt: Sequence[int], sampling: SamplingParams, inbox: Inbox) -> int:
        """Queue a request; its tokens come to ``inbox`` under the number that is returned.

        Raises QueueFullError or EngineLostError.
        """
        ...

    def abort(self, number: int) -> None:
        """Give a request up: its slot is free before the engine's next step."""
        ...

    def fail_open(self, reason: str) -> None:
        """End every open request with this error."""
        ...

    async def start(self) -> None: ...

    async def start_profile(self) -> None:
        """Begin to time every step and collective."""
        ...

    async def stop_profile(self) -> Sequence[Sequence[StepTimes]]:
        """End it: the steps of each replica. Raises EngineLostError."""
        ...

    async def lost(self) -> WeftError:
        """Wait until the engine is gone for good; why, as the error to end with."""
        ...

    async def close(self) -> None:
        """End the engine; bounded."""
        ...
