"""How far a server's measured times lie from predicted ones, by kind of server.

``data/serving_errors.json`` has ratios measured over predicted of public serving rows (fit sweeps
only): the ends of the middle nine tenths. benchmarks/fit_profiles.py writes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from weft.prediction.engine_profile import EngineProfile
from weft.prediction.quantity import Estimate


@dataclass(frozen=True, kw_only=True)
class ErrorRange:
    """The 90 % interval of measured over predicted."""

    low: float
    high: float

    def around(self, value: float) -> Estimate:
        """``value`` with its interval."""
        return Estimate(value=value, low=value * min(self.low, 1), high=value * max(self.high, 1))

    @classmethod
    def of_spread(cls, spread: float) -> ErrorRange:
        """Of a relative standard deviation."""
        one = Estimate.around(1.0, spread)
        return cls(low=one.low, high=one.high)


@cache
def _measured() -> dict[str, dict[str, list[float]]]:
    file = resources.files("weft.prediction") / "data" / "serving_errors.json"
    ranges: dict[str, dict[str, list[float]]] = json.loads(file.read_text(encoding="utf-8"))[
        "ranges"
    ]
    return ranges


def keys(engine: str, family: str, accelerator: str) -> tuple[str, str, str]:
    """The kinds of server that one is of, the narrowest first."""
    return f"{engine} {family} {accelerator}", f"{engine} {family}", engine


def error_ranges(
    profile: EngineProfile, family: str, accelerator: str
) -> tuple[ErrorRange, ErrorRange]:
    """Of TTFT and TPOT; the profile's spreads where no public rows say more."""
    for key in keys(profile.name, family, accelerator):
        if key in _measured():
            ttft, tpot = (_measured()[key][name] for name in ("ttft", "tpot"))
            return ErrorRange(low=ttft[0], high=ttft[1]), ErrorRange(low=tpot[0], high=tpot[1])
    spreads = profile.server_ttft_spread, profile.server_tpot_spread
    ttft_range, tpot_range = (ErrorRange.of_spread(spread.value) for spread in spreads)
    return ttft_range, tpot_range
