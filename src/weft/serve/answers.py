"""Generations as OpenAI answers: whole objects and event streams."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from weft.serve.engine_client import EngineLostError
from weft.serve.errors import error_body
from weft.serve.generation import Generation, Piece
from weft.serve.protocol import StreamOptions


@dataclass(frozen=True, kw_only=True)
class AnswerKind:
    """How the answers of one endpoint look."""

    chat: bool
    model: str
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

    def streamed_choice(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        content = {"delta": {"content": text}} if self.chat else {"text": text}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}

    def whole_choice(self, index: int, text: str, finish_reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        content = {"message": message} if self.chat else {"text": text}
        return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


def usage(generation: Generation) -> dict[str, int]:
    prompt, output = generation.num_prompt_tokens, generation.num_output_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }


async def whole_answer(kind: AnswerKind, generation: Generation) -> dict[str, Any]:
    """Wait for every choice. Raises EngineLostError."""
    texts = [""] * len(generation.choices)
    reasons = ["stop"] * len(generation.choices)
    async for piece in generation.pieces():
        texts[piece.index] += piece.text
        reasons[piece.index] = piece.finish_reason or reasons[piece.index]
    choices = [
        kind.whole_choice(index, text, reason)
        for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
    ]
    return {**kind.envelope(streamed=False), "choices": choices, "usage": usage(generation)}


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
    choice = kind.streamed_choice(piece.index, piece.text, piece.finish_reason)
    return {**envelope, "choices": [choice], **_running_usage(generation, options)}


def _running_usage(generation: Generation, options: StreamOptions) -> dict[str, Any]:
    if options.include_usage and options.continuous_usage_stats:
        return {"usage": usage(generation)}
    return {"usage": None} if options.include_usage else {}


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"
