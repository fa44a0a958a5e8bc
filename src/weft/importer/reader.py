"""Read the events of a trace in batches, in memory that does not grow with the file.

The text is cut between two events (``}, {"ph"``; inside a JSON string the quotes
would be escaped, so no cut falls there) and every piece is decoded by itself. A
piece that does not decode is taken apart event by event, and what cannot be read
is counted, not dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from weft.errors import FileFormatError
from weft.importer.events import Event
from weft.importer.inflate import TraceBytes
from weft.importer.salvage import CUT, cuts_from_end, decode_each

BATCH_BYTES: Final = 4 << 20
_MOST_HEAD_BYTES: Final = 64 << 20
_MOST_PIECE_BYTES: Final = 64 << 20
_EVENTS_KEY: Final = re.compile(rb'"traceEvents"\s*:\s*\[')
_MOST_BRACKETS_TRIED: Final = 256
_BATCH: Final = msgspec.json.Decoder(list[Event])
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _Tail(msgspec.Struct):
    events: list[Event] = msgspec.field(name="traceEvents")


_TAIL: Final = msgspec.json.Decoder(_Tail)
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class TraceReader:
    """One pass over a trace file.

    After :meth:`batches` is used up, ``metadata`` holds the fields beside
    ``traceEvents``, ``truncated`` says that the file broke off before its end and
    ``num_damaged`` counts the events that could not be decoded.
    """

    def __init__(self, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.truncated = False
        self.num_damaged = 0
        self._bytes = TraceBytes(path, on_bytes)
        self._prefix = b'{"traceEvents":['

    def batches(self) -> Iterator[list[Event]]:
        """Yield the events in file order.

        Raises FileFormatError where the file is missing or holds no ``traceEvents``.
        """
        pieces = self._bytes.pieces()
        buffer = self._skip_head(pieces)
        wanted = BATCH_BYTES
        for piece in pieces:
            buffer += piece
            if len(buffer) >= wanted:
                events, buffer = self._take(buffer)
                wanted = max(BATCH_BYTES, 2 * len(buffer))
                yield events
        yield self._last(buffer)
        self.truncated |= self._bytes.truncated

    def _skip_head(self, pieces: Iterator[bytes]) -> bytes:
        """Read up to the first event; what stands before is metadata."""
        head = b""
        for piece in pieces:
            head += piece
            start = head[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
            if start[:1] == b"[":
                self._prefix = b"["
                return head[head.index(b"[") + 1 :]
            if (start and start[:1] != b"{") or len(head) > _MOST_HEAD_BYTES:
                break
            if found := _EVENTS_KEY.search(head):
                self.metadata = _fields(head[head.index(b"{") : found.end()] + b"]}") or {}
                return head[found.end() :]
        raise FileFormatError(
            f"{self.path}: not a PyTorch profiler trace (no traceEvents); "
            "give the .json or .json.gz file that torch.profiler wrote"
        )

    def _take(self, buffer: bytes) -> tuple[list[Event], bytes]:
        """Decode up to a cut near the end of ``buffer``; return the events and the rest."""
        last = None
        for cut in cuts_from_end(buffer):
            last = last or cut
            try:
                return _BATCH.decode(b"[" + buffer[: cut.start() + 1] + b"]"), buffer[cut.end() :]
            except _UNDECODABLE:
                continue
        if len(buffer) < _MOST_PIECE_BYTES:
            return [], buffer
        end, rest = (last.start() + 1, last.end()) if last else (len(buffer), len(buffer))
        return self._salvage(buffer[:end]), buffer[rest:]

    def _last(self, buffer: bytes) -> list[Event]:
        """Decode what is left: the last events and the fields after them."""
        try:
            if self._prefix == b"[":
                return _BATCH.decode(b"[" + buffer)
            events = _TAIL.decode(self._prefix + buffer).events
            self.metadata |= _values(_FIELDS.decode(self._prefix + buffer))
        except _UNDECODABLE:
            return self._broken_last(buffer)
        return events

    def _broken_last(self, buffer: bytes) -> list[Event]:
        closing = self._end_of_events(buffer)
        if closing is not None:
            return self._salvage(buffer[:closing])
        self.truncated = True
        cuts = list(CUT.finditer(buffer))
        whole, rest = (cuts[-1].start() + 1, cuts[-1].end()) if cuts else (0, 0)
        last, _ = decode_each(buffer[rest:])
        return self._salvage(buffer[:whole]) + last

    def _end_of_events(self, buffer: bytes) -> int | None:
        """Where the bracket stands that closes the events; None in a file that broke off."""
        found, position = None, len(buffer)
        for _ in range(_MOST_BRACKETS_TRIED):
            position = buffer.rfind(b"]", 0, position)
            if position < 0:
                break
            if self._prefix == b"[":
                return position if not buffer[position + 1 :].strip() else None
            fields = _fields(self._prefix + buffer[position:])
            if fields is not None:
                found, after = position, fields
        if found is not None:
            self.metadata |= after
        return found

    def _salvage(self, text: bytes) -> list[Event]:
        events, num_damaged = decode_each(text)
        self.num_damaged += num_damaged
        return events


def _fields(text: bytes) -> dict[str, Any] | None:
    try:
        return _values(_FIELDS.decode(text))
    except _UNDECODABLE:
        return None


def _values(fields: dict[str, msgspec.Raw]) -> dict[str, Any]:
    fields.pop("traceEvents", None)
    return {key: msgspec.json.decode(raw) for key, raw in fields.items()}
