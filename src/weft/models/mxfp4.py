"""Stacks of experts in MXFP4 (gpt-oss): groups of 32 four-bit floats with one exponent each.

Source: OCP Microscaling Formats (MX) 1.0; the layout is that of gpt-oss's checkpoints.
"""

from __future__ import annotations

from typing import Any, Final

import torch

MXFP4: Final = "MXFP4"
_MAGNITUDES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES: Final = torch.tensor((*_MAGNITUDES, *(-value for value in _MAGNITUDES)))
_BIAS: Final = 127


def packed_names(source: str) -> tuple[str, str]:
    """The two tensors that stand for a stack of matrices."""
    return f"{source}_blocks", f"{source}_scales"


class PackedStack:
    """Matrices [E, I, O] as a plain checkpoint stacks them, out of slices of a file.

    blocks [E, O, I / 32, 16]: two weights a byte, the lower half first; scales [E, O, I / 32]:
    exponents of two, each 127 too large.
    """

    def __init__(self, blocks: Any, scales: Any) -> None:
        self._blocks, self._scales = blocks, scales

    def get_shape(self) -> list[int]:
        experts, rows, groups, half = self._blocks.get_shape()
        return [experts, groups * half * 2, rows]

    def get_dtype(self) -> str:
        """MXFP4 where the parts are bytes of shapes that belong together."""
        types = {self._blocks.get_dtype(), self._scales.get_dtype()}
        *whole, half = self._blocks.get_shape()
        fits = types == {"U8"} and half == 16 and list(whole) == list(self._scales.get_shape())
        return MXFP4 if fits else "MXFP4 of parts that do not belong together"

    def __getitem__(self, expert: int) -> torch.Tensor:
        """One matrix [I, O] in fp32."""
        blocks, exponents = self._blocks[expert], self._scales[expert].int() - _BIAS
        values = _VALUES[torch.stack((blocks & 15, blocks >> 4), dim=-1).int().flatten(-2)]
        return torch.ldexp(values, exponents[..., None]).flatten(-2).t()
