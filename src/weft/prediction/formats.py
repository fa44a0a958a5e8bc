"""Formats of a layer's weights: their size, and the rate at which products of them run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from weft.errors import WorkloadError


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """``bytes`` of a weight with its scales; rate: 0, 1, 2 for products in 16, 8, 4 bits.

    like: formats whose kernels are taken where its own have no curve.
    projections: the format of what is not an expert in a model with experts.
    """

    name: str
    bytes: float
    rate: int = 0
    projections: str = ""
    like: tuple[str, ...] = ()

    @property
    def curves(self) -> tuple[str, ...]:
        """Names of kernel curves for this format, the best first."""
        return (self.name, *self.like)


FORMATS: Final = {
    form.name: form
    for form in (
        WeightFormat(name="bfloat16", bytes=2.0),
        WeightFormat(name="float16", bytes=2.0, like=("bfloat16",)),
        WeightFormat(name="float32", bytes=4.0),
        WeightFormat(name="float64", bytes=8.0),
        WeightFormat(name="float8_e4m3fn", bytes=1.0, rate=1, like=("fp8_block",)),
        WeightFormat(name="fp8_block", bytes=1.0, rate=1, like=("float8_e4m3fn",)),
        WeightFormat(name="nvfp4", bytes=0.5625, rate=2, projections="bfloat16"),
        WeightFormat(
            name="mxfp4", bytes=0.53125, rate=1, projections="bfloat16", like=("mxfp4_a16",)
        ),
        WeightFormat(name="int4", bytes=0.5625, projections="bfloat16"),
    )
}
"""Scales: one byte a 16 weights (nvfp4) or 32 (mxfp4), two bytes a 32 (int4)."""


def format_named(name: str) -> WeightFormat:
    """The format of that name; WorkloadError lists the names."""
    try:
        return FORMATS[name]
    except KeyError:
        raise WorkloadError(
            f"`weights` {name}: unknown type; choose one of {', '.join(FORMATS)}"
        ) from None
