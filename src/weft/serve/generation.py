"""One API request as engine requests, and their tokens as pieces of text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from weft.engine.request import SamplingParams
from weft.engine.tokenizer import Tokenizer
from weft.serve.engine_client import EngineClient, TokenEvent, TokenStream
from weft.serve.errors import ApiError
from weft.serve.logprobs import ShownToken
from weft.serve.metrics import Metrics
from weft.serve.protocol import GenerationBody
from weft.serve.text import GrowingText, StopStrings

Finish = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one step added to one choice."""

    index: int
    text: str
    num_tokens: int
    """Output tokens of this choice so far."""
    finish_reason: Finish | None = None
    token_ids: tuple[int, ...] = ()
    """The tokens of this step, a stop token included."""
    shown: tuple[ShownToken, ...] = ()
    """The tokens of the text with their log-probabilities, where they are wanted."""


@dataclass(kw_only=True)
class Choice:
    """One answer while it grows."""

    index: int
    stream: TokenStream
    text: GrowingText
    stops: StopStrings
    stop_ids: frozenset[int]
    num_tokens: int = 0

    def take(self, events: Sequence[TokenEvent]) -> Piece:
        """The piece that these tokens make; ends the request where a stop string is met."""
        self.num_tokens += len(events)
        reason = events[-1].finish_reason
        token_ids = tuple(event.token_id for event in events)
        ids = list(token_ids)
        if reason == "stop":
            ids.pop()
        last = reason is not None
        text = self.stops.add(self.text.add(ids, last=last), last=last)
        if self.stops.hit:
            self.stream.abort()
            reason = "stop"
        shown = self._shown(events[: len(ids)])
        finish: Finish | None = None if reason is None else "stop" if reason == "stop" else "length"
        return Piece(
            index=self.index,
            text=text,
            num_tokens=self.num_tokens,
            finish_reason=finish,
            token_ids=token_ids,
            shown=shown,
        )

    def _shown(self, events: Sequence[TokenEvent]) -> tuple[ShownToken, ...]:
        offsets = self.text.offsets[len(self.text.offsets) - len(events) :]
        return tuple(
            ShownToken(token_id=event.token_id, logprobs=event.logprobs, text_offset=offset)
            for event, offset in zip(events, offsets, strict=True)
            if event.logprobs is not None
        )


@dataclass(kw_only=True)
class Generation:
    """All choices of one API request. Always leave it through ``abort`` or its end."""

    choices: Sequence[Choice]
    num_prompt_tokens: int
    metrics: Metrics
    arrived_s: float = field(default_factory=time.perf_counter)
    _first_s: float | None = None
    _counted: bool = False

    @property
    def num_output_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self.choices)

    def abort(self) -> None:
        """Give every unfinished choice up."""
        for choice in self.choices:
            choice.stream.abort()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Every piece of every choice in the order in which they come."""
        try:
            async for piece in self._merged():
                if self._first_s is None:
                    self._first_s = time.perf_counter()
                yield piece
            self._count("completed")
        except (GeneratorExit, asyncio.CancelledError):
            self._count("cancelled")
            raise
        except Exception:
            self._count("failed")
            raise
        finally:
            self.abort()

    def _count(self, outcome: str) -> None:
        if not self._counted:
            self._counted = True
            self.metrics.finished(
                outcome=outcome,
                arrived_s=self.arrived_s,
                first_s=self._first_s,
                num_prompt_tokens=self.num_prompt_tokens,
                num_output_tokens=self.num_output_tokens,
                num_choices=len(self.choices),
            )

    async def _merged(self) -> AsyncIterator[Piece]:
        if len(self.choices) == 1:
            async for piece in _pieces_of(self.choices[0]):
                yield piece
            return
        queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()
        tasks = [asyncio.create_task(_pump(choice, queue)) for choice in self.choices]
        try:
            for _ in tasks:
                while (item := await queue.get()) is not None:
                    if isinstance(item, Exception):
                        raise item
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces_of(choice: Choice) -> AsyncIterator[Piece]:
    async for events in choice.stream:
        piece = choice.take(events)
        yield piece
        if piece.finish_reason is not None:
            return


async def _pump(choice: Choice, queue: asyncio.Queue[Piece | Exception | None]) -> None:
    try:
        async for piece in _pieces_of(choice):
            queue.put_nowait(piece)
    except Exception as error:  # noqa: BLE001 - handed to the reader of the queue
        queue.put_nowait(error)
    queue.put_nowait(None)


def start_generation(
    engine: EngineClient,
    tokenizer: Tokenizer,
    metrics: Metrics,
    body: GenerationBody,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | None,
) -> Generation:
    """Submit ``len(prompts) * n`` engine requests, all or none.

    Raises ApiError for what cannot run, QueueFullError, EngineLostError.
    """
    arrived_s = time.perf_counter()
    choices: list[Choice] = []
    try:
        for prompt in prompts:
            limit = checked_length(engine, prompt, max_tokens)
            for copy in range(body.num_choices):
                sampling = _sampling(body, limit, copy)
                choices.append(
                    Choice(
                        index=len(choices),
                        stream=engine.submit(prompt, sampling),
                        text=GrowingText(tokenizer),
                        stops=StopStrings(body.stops),
                        stop_ids=frozenset(sampling.stop_token_ids),
                    )
                )
    except Exception:
        for choice in choices:
            choice.stream.abort()
        raise
    return Generation(
        choices=choices,
        num_prompt_tokens=sum(map(len, prompts)),
        metrics=metrics,
        arrived_s=arrived_s,
    )


def checked_length(engine: EngineClient, prompt: Sequence[int], max_tokens: int | None) -> int:
    """Output tokens that the request may have; ApiError where the prompt cannot run."""
    limits = engine.limits
    if limits is None:
        raise ApiError(503, engine.trouble or "starting", code="engine_unavailable")
    wrong = next((token for token in prompt if token >= limits.vocab_size), None)
    if wrong is not None:
        raise ApiError(
            400,
            f"token id {wrong}: outside the vocabulary (0 to {limits.vocab_size - 1})",
            param="prompt",
        )
    room = limits.max_tokens - len(prompt)
    wanted = room if max_tokens is None else max_tokens
    if room < 1 or wanted > room:
        raise ApiError(
            400,
            f"prompt {len(prompt)} + output {max(wanted, 1)} tokens exceed the {limits.max_tokens} "
            "that this server takes; shorten the prompt or lower max_tokens",
            param="messages" if max_tokens is None else "max_tokens",
            code="context_length_exceeded",
        )
    return wanted


def _sampling(body: GenerationBody, max_tokens: int, copy: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=max(body.top_k or 0, 0),
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=None if body.seed is None else body.seed + copy,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        logprobs=body.num_logprobs,
    )
