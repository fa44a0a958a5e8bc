"""Formats of stored matrices as sizes: one row a format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from weft.errors import WorkloadError


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """``bytes`` of a weight with its scales; rate: 0, 1, 2 for products in 16, 8, 4 bits.

    is_read: whether a checkpoint in it can be run; is_held: and stays in it in memory (others
    become what they stand for). columns: of a row that share a scale (0: all of them).
    like: formats whose kernels are taken where its own have no curve.
    projections: the format of what is not an expert in a model with experts, where a whole
    model is said to be in this one.
    """

    name: str
    bytes: float
    rate: int = 0
    projections: str = ""
    like: tuple[str, ...] = ()
    is_read: bool = False
    is_held: bool = False
    columns: int = 0

    @property
    def curves(self) -> tuple[str, ...]:
        """Names of kernel curves for this format, the best first."""
        return (self.name, *self.like)

    def grouped(self, bits: int, group: int, scale_bytes: float) -> WeightFormat:
        """The same with ``bits`` a weight and one scale a ``group`` of weights (0: a whole row)."""
        return replace(self, bytes=bits / 8 + (scale_bytes / group if group else 0.0))


FORMATS: Final = {
    form.name: form
    for form in (
        WeightFormat(name="bfloat16", bytes=2.0, is_read=True),
        WeightFormat(name="float16", bytes=2.0, like=("bfloat16",), is_read=True),
        WeightFormat(name="float32", bytes=4.0, is_read=True),
        WeightFormat(name="float64", bytes=8.0, is_read=True),
        WeightFormat(
            name="float8_e4m3fn",
            bytes=1.0,
            rate=1,
            like=("fp8_block",),
            is_read=True,
            is_held=True,
        ),
        WeightFormat(
            name="fp8_block",
            bytes=1 + 4 / 128**2,
            rate=1,
            like=("float8_e4m3fn",),
            is_read=True,
            is_held=True,
            columns=128,
        ),
        WeightFormat(name="int8", bytes=1.0, rate=1, like=("float8_e4m3fn",)),
        WeightFormat(name="nvfp4", bytes=0.5625, rate=2, projections="bfloat16"),
        WeightFormat(
            name="mxfp4",
            bytes=0.53125,
            rate=1,
            projections="bfloat16",
            like=("mxfp4_a16",),
            is_read=True,
        ),
        WeightFormat(name="int4", bytes=0.5625, projections="bfloat16"),
    )
}
"""Scales: four bytes a 128 x 128 (fp8_block), one a 16 (nvfp4) or 32 (mxfp4), two a 32 (int4)."""

PLAIN: Final = FORMATS["bfloat16"]


@dataclass(frozen=True, kw_only=True)
class LayerFormats:
    """What one layer's matrices are stored in: those into attention and out of it, and the rest.

    dense: gated block that sees every token (a shared expert's too); experts: routed ones.
    """

    inputs: WeightFormat
    output: WeightFormat
    dense: WeightFormat
    experts: WeightFormat

    @property
    def of_matrices(self) -> tuple[WeightFormat, ...]:
        return (self.inputs, self.output, self.dense, self.experts)

    @classmethod
    def all_in(cls, name: str, *, is_moe: bool = False) -> LayerFormats:
        """Every matrix in one format; WorkloadError lists the names."""
        form = format_named(name)
        rest = FORMATS[form.projections] if is_moe and form.projections else form
        return cls(inputs=rest, output=rest, dense=rest, experts=form)


def format_named(name: str) -> WeightFormat:
    """The format of that name; WorkloadError lists the names."""
    try:
        return FORMATS[name]
    except KeyError:
        raise WorkloadError(
            f"`weights` {name}: unknown type; choose one of {', '.join(FORMATS)}"
        ) from None
