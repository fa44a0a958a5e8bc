"""One API request as engine requests, and their tokens as pieces of text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from weft.engine.request import SamplingParams, TokenLogprobs
from weft.engine.tokenizer import Tokenizer
from weft.serve.engine_client import EngineClient, TokenEvent
from weft.serve.errors import ApiError
from weft.serve.logprobs import ShownToken
from weft.serve.metrics import Metrics
from weft.serve.protocol import GenerationBody
from weft.serve.streams import Inbox
from weft.serve.text import GrowingText, StopStrings

Finish = Literal["stop", "length"]
_PASSED_ON: Final = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
)


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """What one token added to one choice."""

    index: int
    text: str
    num_tokens: int
    """Output tokens of all choices so far."""
    finish_reason: Finish | None = None
    token_ids: tuple[int, ...] = ()
    """The tokens of this piece, a stop token included."""
    shown: tuple[ShownToken, ...] = ()
    """The tokens of the text with their log-probabilities, where they are wanted."""
    of_prompt: tuple[Sequence[int], Sequence[TokenLogprobs]] | None = None
    """In a choice's first piece: prompt and its log-probabilities, where they are wanted."""


@dataclass(kw_only=True)
class Choice:
    """One answer while it grows."""

    index: int
    number: int
    prompt: Sequence[int]
    text: GrowingText
    stops: StopStrings
    body: GenerationBody
    _started: bool = False

    @property
    def only_prompt(self) -> bool:
        """Whether nothing but the prompt is wanted: the engine's one token is left out."""
        return self.body.max_tokens == 0

    def take(self, event: TokenEvent, num_tokens: int) -> TextPiece:
        """The piece that this token makes, the request's ``num_tokens``-th."""
        if self._started:
            return self._answer(event, num_tokens)
        self._started = True
        text, shown = self._echo(event) if self.body.echoes else ("", ())
        if self.only_prompt:
            piece = TextPiece(index=self.index, text="", num_tokens=0, finish_reason="length")
        else:
            piece = self._answer(event, num_tokens)
        wanted = getattr(self.body, "prompt_logprobs", None) is not None
        found = (self.prompt, event.prompt_logprobs) if wanted else None
        return replace(piece, text=text + piece.text, shown=shown + piece.shown, of_prompt=found)

    def _echo(self, event: TokenEvent) -> tuple[str, tuple[ShownToken, ...]]:
        """The prompt's text and, where they are known, its tokens."""
        growing, offsets, pieces = GrowingText(self.text.tokenizer), [], []
        for token in self.prompt:
            offsets.append(growing.length)
            pieces.append(growing.add(token))
        text = "".join([*pieces, growing.finish()])
        self.text.length = len(text)
        if self.body.num_logprobs is None:
            return text, ()
        each = (None, *event.prompt_logprobs)
        return text, tuple(map(ShownToken, self.prompt, each, offsets))

    def _answer(self, event: TokenEvent, num_tokens: int) -> TextPiece:
        reason = event.finish_reason
        offset, last = self.text.length, reason is not None
        added = self.text.finish() if reason == "stop" else self.text.add(event.token_id, last=last)
        text = self.stops.add(added, last=last)
        shown: tuple[ShownToken, ...] = ()
        if event.logprobs is not None and (reason != "stop" or self.body.echoes):
            shown = (ShownToken(event.token_id, event.logprobs, offset),)
        if self.stops.hit:
            reason = "stop"
        return TextPiece(
            index=self.index,
            text=text,
            num_tokens=num_tokens,
            finish_reason=None if reason is None else "stop" if reason == "stop" else "length",
            token_ids=(event.token_id,),
            shown=shown,
        )


@dataclass(kw_only=True)
class Generation:
    """All choices of one API request. Always leave it through ``abort`` or its end."""

    engine: EngineClient
    inbox: Inbox
    choices: Sequence[Choice]
    num_prompt_tokens: int
    metrics: Metrics
    arrived_s: float
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens found in the cache by the first answer to each prompt."""
    _open: dict[int, Choice] = field(init=False)
    _first_s: float | None = None
    _counted: bool = False

    def __post_init__(self) -> None:
        self._open = {choice.number: choice for choice in self.choices}

    def abort(self) -> None:
        """Give every unfinished choice up; the request counts as cancelled then."""
        if self._open:
            self._count("cancelled")
        for number in self._open:
            self.engine.abort(number)
        self._open.clear()
        self.inbox.close()

    async def pieces(self) -> AsyncIterator[Sequence[TextPiece]]:
        """Every piece of every choice, one a token; those that are there together at once."""
        try:
            while self._open:
                yield [
                    self._advance(self._open[number], event)
                    for number, event in await self.inbox.get()
                    if number in self._open
                ]
            self._count("completed")
        except (GeneratorExit, asyncio.CancelledError):
            raise
        except Exception:
            self._count("failed")
            raise
        finally:
            self.abort()

    def _advance(self, choice: Choice, event: TokenEvent) -> TextPiece:
        if self._first_s is None:
            self._first_s = time.perf_counter()
        self.num_output_tokens += not choice.only_prompt
        if choice.index % choice.body.num_choices == 0:
            self.num_cached_tokens += event.num_cached
        piece = choice.take(event, self.num_output_tokens)
        if piece.finish_reason is not None:
            del self._open[choice.number]
            if event.finish_reason is None:
                self.engine.abort(choice.number)
        return piece

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
    inbox = Inbox()
    choices: list[Choice] = []
    limits = [checked_length(engine, prompt, max_tokens) for prompt in prompts]
    try:
        for prompt, limit in zip(prompts, limits, strict=True):
            for copy in range(body.num_choices):
                sampling = _sampling(body, limit, copy)
                if engine.limits is not None:
                    sampling.check_vocabulary(engine.limits.vocab_size)
                number = engine.submit(prompt, sampling, inbox)
                choices.append(
                    Choice(
                        index=len(choices),
                        number=number,
                        prompt=prompt,
                        text=GrowingText(tokenizer),
                        stops=StopStrings(body.stops),
                        body=body,
                    )
                )
    except Exception:
        for choice in choices:
            engine.abort(choice.number)
        raise
    return Generation(
        engine=engine,
        inbox=inbox,
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
    room = limits.max_tokens - len(prompt)
    wanted = room if max_tokens is None else max(max_tokens, 1)
    if room < 1 or wanted > room:
        raise ApiError(
            400,
            f"prompt {len(prompt)} + output {max(wanted, 1)} tokens exceed the {limits.max_tokens} "
            "that this server takes; shorten the prompt or lower max_tokens",
            param="messages" if max_tokens is None else "max_tokens",
            code="context_length_exceeded",
        )
    if max(prompt) >= limits.vocab_size:
        raise ApiError(
            400,
            f"token id {max(prompt)}: outside the vocabulary (0 to {limits.vocab_size - 1})",
            param="prompt",
        )
    return wanted


def _sampling(body: GenerationBody, max_tokens: int, copy: int) -> SamplingParams:
    given = {name: getattr(body, name) for name in _PASSED_ON if getattr(body, name) is not None}
    return SamplingParams(
        **{"temperature": 1.0} | given,
        max_tokens=max_tokens,
        top_k=max(body.top_k or 0, 0),
        logit_bias=tuple((int(token), value) for token, value in (body.logit_bias or {}).items()),
        seed=None if body.seed is None else body.seed + copy,
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        logprobs=body.num_logprobs,
        prompt_logprobs=body.num_prompt_logprobs,
    )
