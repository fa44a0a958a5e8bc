"""Where to cut a stretch of events, and how to decode one that does not decode as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import isfinite
from typing import Any, Final

import msgspec

from weft.importer.events import Event

CUT: Final = re.compile(rb'\}\s*,\s*(?=\{\s*"(?:ph|name|cat|pid|tid|ts|dur|id|args|s)"\s*:)')
_ONE: Final = msgspec.json.Decoder(Event)
_MOST_JOINED: Final = 8


def cuts_from_end(buffer: bytes) -> Iterator[re.Match[bytes]]:
    """A few places to cut, last first: the first serves unless events hold lists of objects."""
    end = len(buffer)
    for width in (1 << 12, 1 << 16, 1 << 20):
        cuts = list(CUT.finditer(buffer, max(0, end - width)))
        if cuts:
            yield cuts[-1]
        if len(cuts) > 1:
            yield cuts[0]
        if width >= end:
            return


def decode_each(text: bytes) -> tuple[list[Event], int]:
    """Events of ``text`` one by one, and how many stretches were no event.

    A cut inside an event (a list of objects among its arguments) is mended by
    joining the neighbouring pieces again.
    """
    cuts = [(cut.start() + 1, cut.end()) for cut in CUT.finditer(text)]
    starts, ends = [0] + [cut[1] for cut in cuts], [cut[0] for cut in cuts] + [len(text)]
    events, num_damaged, index = [], 0, 0
    while index < len(starts):
        event, used = _decode_joined(text, starts, ends, index)
        index += used
        if event is not None:
            events.append(event)
        elif text[starts[index - 1] : ends[index - 1]].strip():
            num_damaged += 1
    return events, num_damaged


def _decode_joined(
    text: bytes, starts: list[int], ends: list[int], first: int
) -> tuple[Event | None, int]:
    for last in range(first, min(first + _MOST_JOINED, len(ends))):
        event = _decode_one(text[starts[first] : ends[last]])
        if event is not None:
            return event, last - first + 1
    return None, 1


def _decode_one(piece: bytes) -> Event | None:
    """An event by msgspec, else by the lenient standard parser (NaN, raw control characters)."""
    try:
        return _ONE.decode(piece)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return _lenient(json.loads(piece.decode("utf-8", "replace"), strict=False))
    except (ValueError, TypeError, RecursionError):
        return None


def _lenient(value: Any) -> Event | None:
    """An event of any JSON object; None for one without a time that can be told."""
    if not isinstance(value, dict):
        return None
    start_us, duration_us = float(value.get("ts") or 0.0), float(value.get("dur") or 0.0)
    if not (isfinite(start_us) and isfinite(duration_us)):
        return None
    return Event(
        ph=str(value.get("ph") or ""),
        cat=str(value.get("cat") or ""),
        name=str(value.get("name") or ""),
        tid=msgspec.Raw(msgspec.json.encode(value.get("tid"))),
        ts=start_us,
        dur=duration_us,
        args=msgspec.Raw(msgspec.json.encode(value.get("args") or {})),
    )
