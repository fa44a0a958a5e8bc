"""Rotary position embedding as data: base, how much of a head turns, and the scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from weft.errors import ModelConfigError


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """Numbers that must be finite and above zero."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not (math.isfinite(value) and value > 0):
                raise ModelConfigError(f"rope {field.name} is {value!r}, must be a number above 0")


@dataclass(frozen=True, kw_only=True)
class LinearScaling(_Checked):
    """All frequencies divided by ``factor``."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling(_Checked):
    """Llama 3.1: long wavelengths stretched by ``factor``, short ones kept, others blended."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, kw_only=True)
class YarnScaling(_Checked):
    """YaRN (Peng et al. 2023, arXiv:2309.00071): blend by rotations within the first context.

    attention_factor scales cos and sin; score_factor scales attention scores (DeepSeek).
    truncate: whether the blended range ends at whole dimensions.
    """

    factor: float
    original_max_position: int
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    score_factor: float = 1.0


Scaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, kw_only=True)
class Rope(_Checked):
    """Angles of position p: p * theta^(-2i / rotary size).

    rotary_dim: leading elements of a head that turn (None: all of them); interleaved:
    pairs are neighbours (2i, 2i + 1) and not halves (i, i + size / 2).
    """

    theta: float = 10000.0
    rotary_dim: int | None = None
    interleaved: bool = False
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.theta <= 1:
            raise ModelConfigError(f"rope theta is {self.theta!r}, must be above 1")
        if self.rotary_dim is not None and (self.rotary_dim < 2 or self.rotary_dim % 2):
            raise ModelConfigError(
                f"{self.rotary_dim} elements of a head turn; rotary embeddings need pairs"
            )


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """YaRN's growth of attention with the context: 0.1 scale ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
