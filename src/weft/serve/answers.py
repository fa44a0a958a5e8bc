"""Generations as OpenAI answers: whole objects and event streams."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.json import encode

from weft.serve.engine_client import EngineLostError
from weft.serve.errors import error_body
from weft.serve.generation import Generation, TextPiece
from weft.serve.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from weft.serve.protocol import StreamOptions
from weft.serve.token_text import TokenTexts


@dataclass(frozen=True, kw_only=True)
class AnswerKind:
    """How the answers of one endpoint look."""

    chat: bool
    model: str
    texts: TokenTexts
    """How tokens are shown in log-probabilities."""
    token_ids: bool = False
    """Whether choices carry their tokens beside their text."""
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, *, streamed: bool) -> dict[str, Any]:
        """The fields around ``choices``."""
        if self.chat:
            kind = "chat.completion.chunk" if streamed else "chat.completion"
        else:
            kind = "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model}

    def streamed_choice(self, piece: TextPiece, *, first: bool) -> dict[str, Any]:
        if not self.chat:
            return self._choice(piece, {"text": piece.text})
        role = {"role": "assistant"} if first else {}
        return self._choice(piece, {"delta": {**role, "content": piece.text}})

    def whole_choice(self, piece: TextPiece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return self._choice(piece, {"message": message} if self.chat else {"text": piece.text})

    def _choice(self, piece: TextPiece, content: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": piece.index, **content, "logprobs": self._logprobs(piece)}
        choice["finish_reason"] = piece.finish_reason
        if piece.of_prompt is not None:
            choice["prompt_logprobs"] = prompt_logprobs(*piece.of_prompt, self.texts)
        return choice | ({"token_ids": piece.token_ids} if self.token_ids else {})

    def _logprobs(self, piece: TextPiece) -> dict[str, Any] | None:
        if not piece.shown:
            return None
        form = chat_logprobs if self.chat else completion_logprobs
        return form(piece.shown, self.texts)


def usage(generation: Generation, output: int | None = None) -> dict[str, Any]:
    """Token counts in OpenAI's words, with ``output`` tokens or all so far."""
    prompt = generation.num_prompt_tokens
    output = generation.num_output_tokens if output is None else output
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
    }


async def whole_answer(kind: AnswerKind, generation: Generation) -> dict[str, Any]:
    """Wait for every choice. Raises EngineLostError."""
    pieces: list[list[TextPiece]] = [[] for _ in generation.choices]
    async for several in generation.pieces():
        for piece in several:
            pieces[piece.index].append(piece)
    choices = [kind.whole_choice(joined(of_choice)) for of_choice in pieces if of_choice]
    return {**kind.envelope(streamed=False), "choices": choices, "usage": usage(generation)}


def joined(pieces: Sequence[TextPiece]) -> TextPiece:
    """Consecutive pieces of one choice as one."""
    last = pieces[-1]
    return TextPiece(
        index=last.index,
        text="".join(piece.text for piece in pieces),
        num_tokens=last.num_tokens,
        finish_reason=last.finish_reason,
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        shown=tuple(token for piece in pieces for token in piece.shown),
        of_prompt=pieces[0].of_prompt,
    )


class Grouped:
    """Pieces of ``num_tokens`` tokens each; the last of a choice may have fewer."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._held: dict[int, list[TextPiece]] = {}

    def add(self, piece: TextPiece) -> TextPiece | None:
        """The group that ``piece`` completes, if it does."""
        if self._num_tokens == 1:
            return piece
        held = self._held.setdefault(piece.index, [])
        held.append(piece)
        if len(held) < self._num_tokens and piece.finish_reason is None:
            return None
        return joined(self._held.pop(piece.index))


async def event_stream(
    kind: AnswerKind, generation: Generation, options: StreamOptions, interval: int = 1
) -> AsyncIterator[bytes]:
    """Server-sent events, each with ``interval`` tokens of a choice, written as they come.

    There is none without tokens before the end: clients time the first token by the first event.
    An engine that dies becomes an error event, never a silent end.
    """
    envelope = kind.envelope(streamed=True)
    groups = Grouped(interval)
    begun: set[int] = set()

    def chunk(piece: TextPiece) -> bytes:
        choice = kind.streamed_choice(piece, first=piece.index not in begun)
        begun.add(piece.index)
        document = {**envelope, "choices": [choice]}
        if options.include_usage:
            running = options.continuous_usage_stats
            document["usage"] = usage(generation, piece.num_tokens) if running else None
        return _event(document)

    try:
        async for pieces in generation.pieces():
            whole = [group for piece in pieces if (group := groups.add(piece)) is not None]
            if whole:
                yield b"".join(map(chunk, whole))
        if options.include_usage:
            yield _event({**envelope, "choices": [], "usage": usage(generation)})
    except EngineLostError as error:
        yield _event(error_body(503, str(error), code="engine_unavailable"))
    yield b"data: [DONE]\n\n"


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + encode(document) + b"\n\n"
