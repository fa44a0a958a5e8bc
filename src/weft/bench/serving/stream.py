"""From the bytes of one streamed OpenAI answer to a RequestRecord."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from weft.bench.serving.http_client import CLOSED
from weft.bench.serving.records import RequestRecord
from weft.bench.serving.sse import EventParser

_ERROR_BYTES = 2000


class StreamSink:
    """Collects one response into ``record`` and calls ``done(record)`` exactly once."""

    __slots__ = ("_body", "_closed", "_done", "_finished", "_parser", "record")

    def __init__(self, record: RequestRecord, done: Callable[[RequestRecord], None]) -> None:
        self.record = record
        self._done = done
        self._parser = EventParser()
        self._body = b""
        self._finished = False
        self._closed = False

    def on_status(self, status: int) -> None:
        self.record.status = status

    def on_bytes(self, body: bytes, now_s: float) -> None:
        if self.record.status != 200:
            self._body = (self._body + body)[:_ERROR_BYTES]
            return
        for event in self._parser.feed(body):
            self._on_event(event, now_s)

    def on_end(self, error: str | None, now_s: float) -> None:
        if self._closed:
            return
        self._closed = True
        self.record.end_s = now_s
        if error == CLOSED and self._finished:
            error = None
        self.record.error = self.record.error or error or self._verdict()
        self._done(self.record)

    def _verdict(self) -> str | None:
        if self.record.status != 200:
            return f"status {self.record.status}: {_error_message(self._body)}"
        if not self.record.chunk_s:
            return "no chunk with choices in the answer"
        return None if self._finished else "the stream ended without finish_reason or [DONE]"

    def _on_event(self, event: bytes, now_s: float) -> None:
        if event == b"[DONE]":
            self._finished = True
            return
        try:
            document = json.loads(event)
            self._on_document(document, now_s)
        except (ValueError, TypeError, AttributeError, KeyError):
            self.record.error = self.record.error or f"unreadable event: {event[:80]!r}"

    def _on_document(self, document: dict[str, Any], now_s: float) -> None:
        record = self.record
        if document.get("error"):
            record.error = f"error in the stream: {_message_of(document)}"
        usage = document.get("usage")
        if usage:
            record.prompt_tokens = usage.get("prompt_tokens", record.prompt_tokens)
            record.output_tokens = usage.get("completion_tokens", record.output_tokens)
        choices = document.get("choices")
        if choices:
            record.chunk_s.append(now_s)
            record.chunk_tokens.append(usage["completion_tokens"] if usage else -1)
            record.chunk_content.append(any(_has_content(choice) for choice in choices))
            self._finished |= choices[0].get("finish_reason") is not None


def _has_content(choice: dict[str, Any]) -> bool:
    if choice.get("text"):
        return True
    delta = choice.get("delta") or {}
    return any(
        delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls")
    )


def _error_message(body: bytes) -> str:
    try:
        return _message_of(json.loads(body))
    except ValueError:
        return body[:200].decode(errors="replace")


def _message_of(document: Any) -> str:
    error = document.get("error", document) if isinstance(document, dict) else document
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:200]
