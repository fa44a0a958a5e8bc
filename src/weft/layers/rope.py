"""Rotary position embedding with the scalings of Llama 3.1/3.2 (``llama3``) and ``linear``."""

from __future__ import annotations

import math

import torch

from weft.vocabulary.model_spec import ModelSpec, RopeScaling


class RotaryTable:
    """cos and sin of every position up to ``max_length``: [max_length, head_dim], fp32."""

    def __init__(self, spec: ModelSpec, max_length: int, device: torch.device) -> None:
        frequencies = _inverse_frequencies(spec).to(device)
        angles = torch.outer(torch.arange(max_length, device=device).float(), frequencies)
        both_halves = torch.cat((angles, angles), dim=-1)
        self._cos, self._sin = both_halves.cos(), both_halves.sin()

    def halves(self) -> torch.Tensor:
        """[max_length, head_dim]: the cosines of the half of angles, then their sines."""
        half = self._cos.shape[1] // 2
        return torch.cat((self._cos[:, :half], self._sin[:, :half]), dim=1)

    def at(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cos and sin for ``positions`` [T], each [T, 1, head_dim]."""
        cos = self._cos[positions][:, None].to(dtype)
        return cos, self._sin[positions][:, None].to(dtype)


def rotate(x: torch.Tensor, cos_sin: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate [T, heads, head_dim] by the angles of its positions (halves convention)."""
    cos, sin = cos_sin
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _inverse_frequencies(spec: ModelSpec) -> torch.Tensor:
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    plain = 1.0 / (spec.rope_theta**exponents)
    scaling = spec.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    return _llama3_frequencies(plain, scaling)


def _llama3_frequencies(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long wavelengths are stretched by ``factor``, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / plain
    turns = scaling.original_max_position / wavelengths
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * plain / scaling.factor + blend * plain
