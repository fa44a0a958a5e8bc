"""Which algorithm a group uses at a size: read from the fabric once, never a call.

The table is the same for every device: a transport says which algorithms it can run, the
fabric says how long each takes on such a group.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from weft.fabric.fabric import Fabric, MeasuredTable

AUTO: Final = "auto"

BACKEND: Final = "backend"
"""The library's own all-reduce (gloo's, NCCL's), measured under this name."""

LIBRARY: Final = "library"
"""How a caller names the library's own."""

MAX_BUCKET: Final = 40


def canonical(algorithm: str) -> str:
    """The name under which an algorithm is measured."""
    return BACKEND if algorithm == LIBRARY else algorithm


def bucket_of(num_bytes: int) -> int:
    """The smallest k with num_bytes <= 2^k: sizes of a bucket share an algorithm."""
    return min(max(num_bytes - 1, 0).bit_length(), MAX_BUCKET)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """An algorithm for every bucket of one group and element type."""

    algorithms: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.algorithms) == MAX_BUCKET + 1

    def pick(self, num_bytes: int) -> str:
        """The algorithm for a message of ``num_bytes``."""
        return self.algorithms[bucket_of(num_bytes)]


def select(
    fabric: Fabric | None,
    *,
    ranks: int,
    nodes: int,
    dtype: str,
    available: Collection[str],
    default: Sequence[tuple[int, str]],
) -> Selection:
    """The fastest measured algorithm of ``available`` in each bucket.

    Where the fabric has no table of weft's own for this group (or there is no fabric),
    ``default`` says: (largest bytes, algorithm) in ascending order, the library's own above
    the last.
    """
    tables = [] if fabric is None else _tables(fabric, ranks, nodes, dtype, available)
    if all(table.algorithm == BACKEND for table in tables):
        return Selection(
            algorithms=tuple(_by_default(2**bucket, default) for bucket in range(MAX_BUCKET + 1))
        )
    return Selection(
        algorithms=tuple(_fastest(tables, 2**bucket) for bucket in range(MAX_BUCKET + 1))
    )


def _tables(
    fabric: Fabric, ranks: int, nodes: int, dtype: str, available: Collection[str]
) -> list[MeasuredTable]:
    """Tables of this group: of this type, or where it was not measured, of any type."""
    found = []
    for name in available:
        table = fabric.table(name, ranks=ranks, nodes=nodes, dtype=dtype) or fabric.table(
            name, ranks=ranks, nodes=nodes
        )
        if table is not None:
            found.append(table)
    return found


def _fastest(tables: Sequence[MeasuredTable], num_bytes: int) -> str:
    return min(tables, key=lambda table: float(table.interpolate(num_bytes))).algorithm


def _by_default(num_bytes: int, default: Sequence[tuple[int, str]]) -> str:
    for largest, algorithm in default:
        if num_bytes <= largest:
            return algorithm
    return BACKEND
