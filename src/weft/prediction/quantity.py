"""Numbers with their uncertainty and origin: inputs (Quantity) and results (Estimate)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from weft.errors import FileFormatError

Origin = Literal["measured", "data sheet", "fitted", "extrapolated", "assumed"]

ORIGINS: Final[tuple[str, ...]] = get_args(Origin)

# Half width of a 90 % interval in standard deviations of a normal distribution.
Z_90: Final = 1.645


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One input: its value, its relative standard deviation, and where it comes from."""

    value: float
    spread: float
    origin: Origin
    source: str

    @classmethod
    def from_json(cls, name: str, document: Any) -> Quantity:
        """Read ``{"value", "spread", "origin", "source"}``; FileFormatError names the field."""
        if not isinstance(document, Mapping):
            raise FileFormatError(f"{name} must be an object with value, spread, origin, source")
        wanted = {"value", "spread", "origin", "source"}
        if set(document) != wanted:
            odd = sorted(set(document) ^ wanted)
            raise FileFormatError(f"{name}: missing or unknown key {odd[0]!r}")
        value, spread = document["value"], document["spread"]
        if not _is_number(value) or value < 0 or not _is_number(spread) or spread < 0:
            raise FileFormatError(f"{name}: value {value!r} and spread {spread!r} must be >= 0")
        if document["origin"] not in ORIGINS:
            raise FileFormatError(
                f"{name}: origin {document['origin']!r} is not one of {', '.join(ORIGINS)}"
            )
        return cls(
            value=float(value),
            spread=float(spread),
            origin=document["origin"],
            source=str(document["source"]),
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A predicted number with its 90 % interval, in the unit of the field that holds it."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, deviation: float) -> Estimate:
        """The log-normal 90 % interval of a positive value with one standard deviation."""
        if value <= 0:
            return cls(value=value, low=value, high=value)
        factor = math.exp(Z_90 * deviation / value)
        return cls(value=value, low=value / factor, high=value * factor)

    def scaled(self, factor: float) -> Estimate:
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def inverse(self, numerator: float) -> Estimate:
        """``numerator / self``: a rate from a time; the ends change places."""
        return Estimate(
            value=numerator / self.value, low=numerator / self.high, high=numerator / self.low
        )

    def contains(self, measured: float) -> bool:
        return self.low <= measured <= self.high

    def overlaps(self, other: Estimate) -> bool:
        return self.low <= other.high and other.low <= self.high

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def root_sum_square(values: Iterable[float]) -> float:
    """Combine independent standard deviations."""
    return math.sqrt(sum(value * value for value in values))
