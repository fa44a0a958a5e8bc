"""Text on a page: escaping for HTML and for Plotly's labels, and numbers with units."""

from __future__ import annotations

import html
import re
from typing import Final

_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def escape(value: object) -> str:
    """``value`` as HTML text that is safe in an element and in a quoted attribute."""
    return html.escape(_printable(str(value)), quote=True)


def label(value: object) -> str:
    """``value`` for a Plotly label; Plotly reads tags and entities there."""
    return html.escape(" ".join(_printable(str(value)).split()), quote=False)


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def number(value: float) -> str:
    """A number with thousands separators; fractions keep five significant digits."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1e4 <= abs(value) < 1e15 else f"{value:,.5g}"


def decimal_bytes(size: float) -> str:
    """Bytes in the units of volumes (1 MB = 1,000,000 bytes)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:,.4g} {unit}"


def binary_bytes(size: float) -> str:
    """Bytes in the units of messages (1 KiB = 1,024 bytes)."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:,.4g} {unit}"
