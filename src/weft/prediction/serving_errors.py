"""How far a server's measured times lie from predicted ones, by engine.

``data/serving_errors.json`` has measured over predicted of public serving rows (fit sweeps only):
the middle nine tenths, widened until nine in ten rows of a sweep that is left out lie inside.
benchmarks/fit_profiles.py writes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from weft.prediction.quantity import Estimate

_TIMES: Final = ("ttft", "tpot")


@dataclass(frozen=True, kw_only=True)
class ErrorRange:
    """The 90 % interval of measured over predicted."""

    low: float
    high: float

    def around(self, value: float) -> Estimate:
        """``value`` with its interval."""
        return Estimate(value=value, low=value * min(self.low, 1), high=value * max(self.high, 1))


@cache
def _measured() -> dict[str, dict[str, list[float]]]:
    file = resources.files("weft.prediction") / "data" / "serving_errors.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    ranges: dict[str, dict[str, list[float]]] = document["ranges"]
    return ranges


def error_ranges(engine: str) -> tuple[ErrorRange, ErrorRange]:
    """Of TTFT and TPOT; a profile of another name is taken for vLLM's."""
    known = _measured().get(engine) or _measured()["vllm"]
    ttft, tpot = (ErrorRange(low=known[name][0], high=known[name][1]) for name in _TIMES)
    return ttft, tpot
