"""Text on a page: numbers with units, the heads of columns, and what cannot be shown."""

from __future__ import annotations

import re
from typing import Final

_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_UNITS: Final = {
    "_us": "µs",
    "_ms": "ms",
    "_bytes": "bytes",
    "_gb_s": "GB/s",
    "_gib": "GiB",
    "_gb": "GB",
}


def printable(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def number(value: float) -> str:
    """A number with thousands separators; fractions keep five significant digits."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1e4 <= abs(value) < 1e15 else f"{value:,.5g}"


def decimal_bytes(size: float) -> str:
    """Bytes in the units of volumes (1 MB = 1,000,000 bytes)."""
    return _scaled(size, 1000, ("B", "kB", "MB", "GB", "TB"))


def binary_bytes(size: float) -> str:
    """Bytes in the units of messages (1 KiB = 1,024 bytes)."""
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(size: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while abs(size) >= base and power < len(units) - 1:
        size, power = size / base, power + 1
    return f"{size:,.4g} {units[power]}"


def head(name: str) -> str:
    """A name with its unit set apart: ``median_us`` is "median (µs)"."""
    for ending, unit in _UNITS.items():
        if name.endswith(ending) and name != ending[1:]:
            return f"{name.removesuffix(ending)} ({unit})".replace("_", " ")
    return name.replace("_", " ")
