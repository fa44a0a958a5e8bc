"""Rotary position embedding: tables of cosines and sines for every kind of scaling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from weft.vocabulary.attention_kinds import AttentionKind
from weft.vocabulary.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling


class RotaryTable:
    """cos and sin of every position up to ``max_length``: [max_length, rotary size], fp32."""

    def __init__(self, rope: Rope, size: int, max_length: int, device: torch.device) -> None:
        frequencies, magnitude = inverse_frequencies(rope, size)
        angles = torch.outer(
            torch.arange(max_length, device=device).float(), frequencies.to(device)
        )
        both_halves = torch.cat((angles, angles), dim=-1)
        self._cos, self._sin = both_halves.cos() * magnitude, both_halves.sin() * magnitude

    def halves(self) -> torch.Tensor:
        """[max_length, rotary size]: the cosines of the half of angles, then their sines."""
        half = self._cos.shape[1] // 2
        return torch.cat((self._cos[:, :half], self._sin[:, :half]), dim=1)

    def at(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cos and sin for ``positions`` [T], each [T, 1, rotary size]."""
        cos = self._cos[positions][:, None].to(dtype)
        return cos, self._sin[positions][:, None].to(dtype)


class RotaryTables:
    """The tables of all ropes of a model."""

    def __init__(
        self, kinds: Iterable[AttentionKind], max_length: int, device: torch.device
    ) -> None:
        sizes = {kind.rope: kind.rotary_size for kind in kinds if kind.rope is not None}
        self._tables = {
            rope: RotaryTable(rope, size, max_length, device) for rope, size in sizes.items()
        }

    def at(self, positions: torch.Tensor, dtype: torch.dtype) -> RotaryAngles:
        """Cos and sin of every rope for ``positions`` [T]."""
        return {rope: table.at(positions, dtype) for rope, table in self._tables.items()}

    @property
    def only(self) -> RotaryTable:
        """The table of a model with one rope."""
        (table,) = self._tables.values()
        return table


RotaryAngles = Mapping[Rope, tuple[torch.Tensor, torch.Tensor]]
"""Cos and sin, each [T, 1, rotary size], of a step's positions by rope."""


def rotate(x: torch.Tensor, rope: Rope, angles: RotaryAngles) -> torch.Tensor:
    """Turn the leading elements of [T, heads, D] by their positions; pairs leave as halves."""
    cos, sin = angles[rope]
    size = cos.shape[-1]
    turned, kept = x[..., :size], x[..., size:]
    if rope.interleaved:
        turned = turned.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned, kept), dim=-1) if kept.shape[-1] else turned


def inverse_frequencies(rope: Rope, size: int) -> tuple[torch.Tensor, float]:
    """Angles a position [size / 2] in fp32, and the factor of cos and sin."""
    exponents = torch.arange(0, size, 2, dtype=torch.int64).float() / size
    plain = 1.0 / (rope.theta**exponents)
    scaling = rope.scaling
    if scaling is None:
        return plain, 1.0
    if isinstance(scaling, LinearScaling):
        return plain / scaling.factor, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3_frequencies(plain, scaling), 1.0
    return _yarn_frequencies(plain, rope.theta, scaling), scaling.attention_factor


def _llama3_frequencies(plain: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Long wavelengths are stretched by ``factor``, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / plain
    turns = scaling.original_max_position / wavelengths
    width = scaling.high_freq_factor - scaling.low_freq_factor or 1e-9
    blend = ((turns - scaling.low_freq_factor) / width).clamp(0.0, 1.0)
    return (1 - blend) * plain / scaling.factor + blend * plain


def _yarn_frequencies(plain: torch.Tensor, theta: float, scaling: YarnScaling) -> torch.Tensor:
    """Dimensions that turn often keep their frequency, slow ones are stretched, a ramp between."""
    half = len(plain)
    low, high = (
        _dimension_of(turns, 2 * half, theta, scaling.original_max_position)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    width = high - low or 0.001
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / width).clamp(0, 1)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def _dimension_of(turns: float, size: int, theta: float, length: int) -> float:
    """The dimension that makes ``turns`` rotations within ``length`` positions."""
    return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))
