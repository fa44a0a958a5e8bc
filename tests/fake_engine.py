"""An engine client without an engine: the answer repeats the prompt, one token a step.

For tests of the HTTP layer and for measuring what that layer costs by itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from weft.engine.request import FinishReason, SamplingParams, TokenLogprobs
from weft.serve.engine_client import (
    EngineLimits,
    EngineLostError,
    EngineStats,
    QueueFullError,
    StepTimes,
    TokenEvent,
)
from weft.serve.streams import Inbox, OpenRequests


@dataclass(kw_only=True)
class _Running:
    prompt: tuple[int, ...]
    sampling: SamplingParams
    produced: int = 0


@dataclass(kw_only=True)
class FakeEngine:
    """Steps every ``step_s`` seconds; at most ``max_running`` requests take part in a step."""

    limits: EngineLimits = field(
        default_factory=lambda: EngineLimits(vocab_size=320, max_tokens=4096, max_open=512)
    )
    step_s: float = 0.002
    max_running: int = 256
    num_cached: int = 0
    """Tokens of every prompt that are said to have been found."""
    trouble: str | None = "starting"
    aborted: list[int] = field(default_factory=list)
    _open: OpenRequests = field(default_factory=OpenRequests)
    _lost: asyncio.Future[str] | None = None
    _requests: dict[int, _Running] = field(default_factory=dict)
    _steps: int = 0
    _steps_before: float = 0.0
    _task: asyncio.Task[None] | None = None
    loop: asyncio.AbstractEventLoop = field(init=False)

    @property
    def stats(self) -> EngineStats:
        running = min(len(self._requests), self.max_running)
        return EngineStats(
            running=running,
            waiting=len(self._requests) - running,
            cache_use=running / self.max_running,
            steps=self._steps,
            communication_share=0.0,
        )

    def submit(self, prompt: Sequence[int], sampling: SamplingParams, inbox: Inbox) -> int:
        if self.trouble is not None:
            raise EngineLostError(self.trouble)
        if len(self._open) >= self.limits.max_open:
            raise QueueFullError(f"{len(self._open)} requests are open; try later")
        number = self._open.open(inbox)
        self._requests[number] = _Running(prompt=tuple(prompt), sampling=sampling)
        return number

    def fail_open(self, reason: str) -> None:
        self._requests.clear()
        self._open.fail(reason)

    async def lost(self) -> EngineLostError:
        assert self._lost is not None
        return EngineLostError(await self._lost)

    async def start(self) -> None:
        self.trouble = None
        self.loop = asyncio.get_running_loop()
        self._lost = self.loop.create_future()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self.trouble = "stopped"
        if self._task is not None:
            self._task.cancel()
        self._open.fail("stopped")

    async def start_profile(self) -> None:
        self._steps_before = time.time()

    async def stop_profile(self) -> Sequence[Sequence[StepTimes]]:
        """One long step, a quarter of it in all-reduces."""
        start_s, end_s = self._steps_before, time.time()
        in_calls = {"all_reduce": (end_s - start_s) / 4}
        return [[StepTimes(phase="decode", start_s=start_s, end_s=end_s, in_calls_s=in_calls)]]

    def lose_rank(self, reason: str) -> None:
        """What the death of a rank looks like from here."""
        self.trouble = reason
        self.fail_open(reason)
        if self._lost is not None:
            self._lost.set_result(reason)

    def abort(self, number: int) -> None:
        if self._open.drop(number):
            self.aborted.append(number)
            self._requests.pop(number, None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            if self._requests:
                self._step()

    def _step(self) -> None:
        self._steps += 1
        for number in list(self._requests)[: self.max_running]:
            request = self._requests[number]
            token = request.prompt[request.produced % len(request.prompt)]
            request.produced += 1
            stopped = token in request.sampling.stop_token_ids
            full = request.produced >= request.sampling.max_tokens
            reason: FinishReason | None = "stop" if stopped else "length" if full else None
            if reason:
                del self._requests[number]
            logprobs = self._logprobs(token, request.sampling.logprobs)
            of_prompt = self._of_prompt(request) if request.produced == 1 else ()
            cached = self.num_cached if request.produced == 1 else 0
            event = TokenEvent(token, reason, logprobs, of_prompt, cached)
            self._open.put(number, event)

    def _of_prompt(self, request: _Running) -> list[TokenLogprobs]:
        wanted = request.sampling.prompt_logprobs
        found = (self._logprobs(token, wanted) for token in request.prompt[1:])
        return [one for one in found if one is not None]

    def _logprobs(self, token: int, num_top: int | None) -> TokenLogprobs | None:
        """The token itself and the ids after it, each half as likely as the one before."""
        if num_top is None:
            return None
        ids = [(token + step) % self.limits.vocab_size for step in range(num_top)]
        top = tuple((one, -math.log(2) * (place + 1)) for place, one in enumerate(ids))
        return TokenLogprobs(logprob=-math.log(2), top=top)
