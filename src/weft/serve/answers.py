"""Generations as OpenAI answers: whole objects and event streams."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from weft.serve.engine_client import EngineLostError
from weft.serve.errors import error_body
from weft.serve.generation import Generation, Piece
from weft.serve.logprobs import chat_logprobs, completion_logprobs
from weft.serve.protocol import StreamOptions
from weft.serve.token_text import TokenTexts


@dataclass(frozen=True, kw_only=True)
class AnswerKind:
    """How the answers of one endpoint look."""

    chat: bool
    model: str
    token_ids: bool = False
    """Whether choices carry their tokens beside their text."""
    logprobs_of: TokenTexts | None = None
    """How tokens are shown in log-probabilities, where these are wanted."""
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

    def streamed_choice(self, piece: Piece) -> dict[str, Any]:
        content = {"delta": {"content": piece.text}} if self.chat else {"text": piece.text}
        return self._choice(piece, content)

    def whole_choice(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return self._choice(piece, {"message": message} if self.chat else {"text": piece.text})

    def _choice(self, piece: Piece, content: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": piece.index, **content, "logprobs": self._logprobs(piece)}
        choice["finish_reason"] = piece.finish_reason
        return choice | ({"token_ids": piece.token_ids} if self.token_ids else {})

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.logprobs_of is None or not piece.shown:
            return None
        form = chat_logprobs if self.chat else completion_logprobs
        return form(piece.shown, self.logprobs_of)


def usage(generation: Generation) -> dict[str, int]:
    prompt, output = generation.num_prompt_tokens, generation.num_output_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }


async def whole_answer(kind: AnswerKind, generation: Generation) -> dict[str, Any]:
    """Wait for every choice. Raises EngineLostError."""
    pieces: list[list[Piece]] = [[] for _ in generation.choices]
    async for piece in generation.pieces():
        pieces[piece.index].append(piece)
    choices = [
        kind.whole_choice(joined(index, of_choice)) for index, of_choice in enumerate(pieces)
    ]
    return {**kind.envelope(streamed=False), "choices": choices, "usage": usage(generation)}


def joined(index: int, pieces: Sequence[Piece]) -> Piece:
    """All pieces of one choice as one; a choice that was given up stops where it was."""
    return Piece(
        index=index,
        text="".join(piece.text for piece in pieces),
        num_tokens=pieces[-1].num_tokens if pieces else 0,
        finish_reason=(pieces[-1].finish_reason if pieces else None) or "stop",
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        shown=tuple(token for piece in pieces for token in piece.shown),
    )


async def event_stream(
    kind: AnswerKind, generation: Generation, options: StreamOptions
) -> AsyncIterator[bytes]:
    """Server-sent events; an engine that dies becomes an error event, never a silent end."""
    envelope = kind.envelope(streamed=True)
    try:
        if kind.chat:
            for choice in generation.choices:
                yield _event(_opening(envelope, choice.index, generation, options))
        async for piece in generation.pieces():
            yield _event(_chunk(kind, envelope, piece, generation, options))
        if options.include_usage:
            yield _event({**envelope, "choices": [], "usage": usage(generation)})
    except EngineLostError as error:
        yield _event(error_body(503, str(error), code="engine_unavailable"))
    yield b"data: [DONE]\n\n"


def _opening(
    envelope: dict[str, Any], index: int, generation: Generation, options: StreamOptions
) -> dict[str, Any]:
    delta = {"role": "assistant", "content": ""}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    return {**envelope, "choices": [choice], **_running_usage(generation, options)}


def _chunk(
    kind: AnswerKind,
    envelope: dict[str, Any],
    piece: Piece,
    generation: Generation,
    options: StreamOptions,
) -> dict[str, Any]:
    choice = kind.streamed_choice(piece)
    return {**envelope, "choices": [choice], **_running_usage(generation, options)}


def _running_usage(generation: Generation, options: StreamOptions) -> dict[str, Any]:
    if options.include_usage and options.continuous_usage_stats:
        return {"usage": usage(generation)}
    return {"usage": None} if options.include_usage else {}


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"
