"""The seam between HTTP and the engine: what the server needs of whatever generates tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from weft.engine.request import FinishReason, SamplingParams, TokenLogprobs
from weft.errors import EnvironmentUnavailable, WeftError


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

    ``communication_share`` is of step time, of the last steps that were timed (None before).
    """

    running: int = 0
    waiting: int = 0
    cache_use: float = 0.0
    steps: int = 0
    communication_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """One generated token; the last one of a request has a ``finish_reason``."""

    token_id: int
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """One step of a replica's leader. Times are seconds since the epoch."""

    phase: str
    start_s: float
    end_s: float
    in_calls_s: dict[str, float]
    """Seconds inside the collectives of the step by operation."""


class TokenStream(Protocol):
    """The tokens of one request as they come; several at once where the reader is late.

    Iterating raises EngineLostError when the engine dies. After ``abort`` it ends.
    """

    def __aiter__(self) -> AsyncIterator[Sequence[TokenEvent]]: ...

    def abort(self) -> None:
        """Give the request up: its slot is free before the engine's next step."""
        ...


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

    def submit(self, prompt: Sequence[int], sampling: SamplingParams) -> TokenStream:
        """Queue a request. Raises QueueFullError or EngineLostError."""
        ...

    async def start(self) -> None: ...

    async def start_profile(self) -> None:
        """Begin to time every step and collective."""
        ...

    async def stop_profile(self) -> Sequence[Sequence[StepTimes]]:
        """End it: the steps of each replica. Raises EngineLostError."""
        ...

    async def close(self) -> None:
        """End the engine; bounded."""
        ...
