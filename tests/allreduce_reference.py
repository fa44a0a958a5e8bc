"""The result that every transport must give: the programs of all ranks run in lock step.

Values are added in a fixed order, in float32 for 16-bit types.

In NumPy, where bfloat16 has no type of its own, its values are kept as their 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weft.allreduce.algorithms import build
from weft.allreduce.program import Combine, Program, Topology

Values = NDArray[Any]

STORAGE: Final[dict[str, np.dtype[Any]]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
}
"""NumPy's type for each element type that all-reduce adds."""


def add_in_order(parts: Sequence[Values], dtype: str) -> Values:
    """The sum of ``parts``, first to last, rounded once to ``dtype``; one part is a copy."""
    if len(parts) == 1:
        return parts[0].copy()
    total = _widen(parts[0], dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        for part in parts[1:]:
            total = total + _widen(part, dtype)
    return from_float(total, dtype) if dtype in ("bfloat16", "float16") else total


def _widen(values: Values, dtype: str) -> Values:
    return to_float(values, dtype) if dtype in ("bfloat16", "float16") else values


def to_float(values: Values, dtype: str) -> Values:
    """The stored values as float32 (16-bit types) or as they are."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32) if dtype == "float16" else values


def from_float(values: Values, dtype: str) -> Values:
    """Numbers rounded to nearest even in the stored form of ``dtype``."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(STORAGE[dtype])
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def all_reduce_reference(
    algorithm: str, topology: Topology, inputs: Sequence[Values], dtype: str
) -> list[Values]:
    """The result of every rank; ``inputs`` are one [count] array a rank, in stored form."""
    count = len(inputs[0])
    programs = [build(algorithm, topology, count, rank) for rank in range(topology.ranks)]
    values = [item.copy() for item in inputs]
    for index in range(len(programs[0])):
        values = _lock_step(programs, index, values, dtype)
    return values


def _lock_step(
    programs: Sequence[Program], index: int, values: list[Values], dtype: str
) -> list[Values]:
    after = [item.copy() for item in values]
    for rank, program in enumerate(programs):
        for combine in program[index].combines:
            parts = [
                _sent(programs, index, source, rank, combine, values) for source in combine.sources
            ]
            after[rank][combine.start : combine.stop] = add_in_order(parts, dtype)
    return after


def _sent(
    programs: Sequence[Program],
    index: int,
    source: int,
    rank: int,
    combine: Combine,
    values: list[Values],
) -> Values:
    """What ``source`` sends to ``rank`` in this step (its own values where they are one rank)."""
    bounds = (combine.start, combine.stop)
    if source != rank:
        sends = [item for item in programs[source][index].sends if item.target == rank]
        assert [(item.start, item.stop) for item in sends] == [bounds], "send and combine differ"
    return values[source][slice(*bounds)]
