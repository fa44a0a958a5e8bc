"""Where to cut a stretch of events, and how to decode one that does not decode as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import isfinite
from typing import Any, Final

import msgspec

from weft.importer.events import Event

_BETWEEN: Final = r'\}\s*,\s*(?=\{\s*"(?:ph|name|cat|pid|tid|ts|dur|id|args|s)"\s*:)'
CUT: Final = re.compile(_BETWEEN.encode())
_NEXT: Final = re.compile(_BETWEEN)
_GAP: Final = re.compile(r"[\s,]*")
_LENIENT: Final = json.JSONDecoder(strict=False)


def cuts_from_end(buffer: bytes) -> Iterator[re.Match[bytes]]:
    """A few places to cut, last first: the first serves unless events hold lists of objects."""
    for width in (1 << 12, 1 << 16, 1 << 20):
        cuts = list(CUT.finditer(buffer, max(0, len(buffer) - width)))
        yield from (cuts[-1], cuts[0]) if cuts else ()
        if width >= len(buffer):
            return


def decode_each(text: bytes) -> tuple[list[Event], int]:
    """Events of ``text`` one by one, and how many stretches were no event.

    The lenient standard parser takes NaN and raw control characters.
    """
    content, position = text.decode("utf-8", "replace"), 0
    events: list[Event] = []
    num_damaged = 0
    while (position := _end_of(_GAP.match(content, position), content)) < len(content):
        try:
            value, end = _LENIENT.raw_decode(content, position)
            events.append(_event(value))
        except (ValueError, TypeError, RecursionError):
            num_damaged += 1
            end = _end_of(_NEXT.search(content, position), content)
        position = end
    return events, num_damaged


def _end_of(match: re.Match[str] | None, content: str) -> int:
    return match.end() if match else len(content)


def _event(value: Any) -> Event:
    """An event of any JSON object. Raises ValueError or TypeError where no time can be told."""
    if not isinstance(value, dict):
        raise TypeError("an event is an object")
    start_us, duration_us = float(value.get("ts") or 0.0), float(value.get("dur") or 0.0)
    if not (isfinite(start_us) and isfinite(duration_us)):
        raise ValueError("an event begins and ends")
    return Event(
        ph=str(value.get("ph") or ""),
        cat=str(value.get("cat") or ""),
        name=str(value.get("name") or ""),
        tid=msgspec.Raw(msgspec.json.encode(value.get("tid"))),
        ts=start_us,
        dur=duration_us,
        args=msgspec.Raw(msgspec.json.encode(value.get("args") or {})),
    )
