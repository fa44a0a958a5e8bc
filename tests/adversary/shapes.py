"""The groups that the kernels are compiled for here."""

from __future__ import annotations

from adversary.world import Shape

QUICK = (
    Shape(ranks=2, dtype="float32"),
    Shape(ranks=3, nodes=3),
    Shape(ranks=4, nodes=2, dtype="float16"),
)
ALL = (
    *QUICK,
    Shape(ranks=4, nodes=4, dtype="float32"),
    Shape(ranks=5),
    Shape(ranks=6, nodes=3, dtype="float32"),
    Shape(ranks=8, nodes=2),
    Shape(ranks=7, nodes=7, dtype="float16"),
)
