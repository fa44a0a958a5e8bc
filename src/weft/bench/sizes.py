"""Message sizes as people write them: ``8K:4M`` (powers of two), ``8K,1000,2M``."""

from __future__ import annotations

import re
from typing import Final

from weft.errors import UserError

_UNITS: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_MAX_BYTES: Final = 2**36


def parse_sizes(text: str) -> list[int]:
    """Bytes, ascending; UserError shows how to write them."""
    sizes: set[int] = set()
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        if colon:
            sizes.update(_doublings(text, _bytes(text, first), _bytes(text, last)))
        else:
            sizes.add(_bytes(text, first))
    return sorted(sizes)


def size_text(num_bytes: int) -> str:
    """The shortest exact way to write a size: 8192 -> 8K, 1000 -> 1000."""
    for unit, scale in reversed(_UNITS.items()):
        if num_bytes >= scale and num_bytes % scale == 0:
            return f"{num_bytes // scale}{unit}"
    return str(num_bytes)


def _doublings(text: str, first: int, last: int) -> list[int]:
    if last < first:
        raise UserError(f"`sizes` {text}: {size_text(last)} is below {size_text(first)}; swap them")
    sizes = []
    while first <= last:
        sizes.append(first)
        first *= 2
    return sizes


def _bytes(text: str, part: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)(?:i?B)?", part.strip(), re.IGNORECASE)
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if not 1 <= size <= _MAX_BYTES:
        raise UserError(f"`sizes` {text}: write bytes like 8K:4M or 8K,1000,2M (1 to 64G)")
    return size
