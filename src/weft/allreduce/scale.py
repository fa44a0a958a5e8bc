"""The scale model: all algorithms and NCCL side by side, crossovers, published figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from weft.allreduce.cost import NCCL_ALGORITHMS, WEFT_ALGORITHMS, best, latency_us
from weft.fabric.fabric import Fabric
from weft.vocabulary.schedule import Collective

PUBLISHED_BYTES: Final = (128 * 1024, 2 * 1024 * 1024)
PUBLISHED_SPEED_UP: Final = (1.9, 3.6)
"""Singhania et al.: NVRAR over NCCL, 128 KiB-2 MiB, Slingshot 11 and InfiniBand."""

COLUMNS: Final = (*WEFT_ALGORITHMS, "tree", *NCCL_ALGORITHMS, "nccl")

_GRID: Final = 2000


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """Times of one message size in µs, by algorithm."""

    bytes: int
    times_us: dict[str, float]
    best: str

    @property
    def best_us(self) -> float:
        return self.times_us[self.best]

    @property
    def speed_up(self) -> float:
        """NCCL's best over weft's best."""
        return self.times_us["nccl"] / self.best_us

    @property
    def hierarchical_speed_up(self) -> float:
        """NCCL's best over hierarchical recursive doubling, the published algorithm."""
        return self.times_us["nccl"] / self.times_us["hierarchical_doubling"]


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """From ``bytes`` on, ``after`` is faster than ``before``."""

    bytes: int
    before: str
    after: str


def predict(sizes: Sequence[int], nodes: int, gpus_per_node: int, fabric: Fabric) -> list[SizeRow]:
    """Times of every algorithm at every size."""
    columns = {
        name: latency_us(name, sizes, nodes, gpus_per_node, fabric)
        for name in COLUMNS
        if fabric.uses_nccl or not name.startswith("nccl")
    }
    winners, _ = best(sizes, nodes, gpus_per_node, fabric)
    return [
        SizeRow(
            bytes=size,
            times_us={name: float(times[place]) for name, times in columns.items()},
            best=str(winners[place]),
        )
        for place, size in enumerate(sizes)
    ]


def best_all_reduce(fabric: Fabric, row: Collective) -> tuple[str, float] | None:
    """The fastest algorithm of a row and its time in µs; None for a row that is no all-reduce."""
    size, ranks = row.message_bytes, row.group_size
    if row.op != "all_reduce" or not size or not ranks or ranks < 2:
        return None
    width = min(ranks, fabric.gpus_per_node)
    if ranks % width:
        return None
    found = predict([size], ranks // width, width, fabric)[0]
    return found.best, found.best_us


def crossovers(
    sizes: Sequence[int], nodes: int, gpus_per_node: int, fabric: Fabric
) -> list[Crossover]:
    """Where the fastest of weft's algorithms changes between the first and the last size."""
    if min(sizes) == max(sizes):
        return []
    grid = np.unique(np.geomspace(min(sizes), max(sizes), _GRID).round().astype(np.int64))
    winners, _ = best(grid, nodes, gpus_per_node, fabric)
    changes = np.flatnonzero(winners[1:] != winners[:-1])
    return [
        Crossover(bytes=int(grid[i + 1]), before=str(winners[i]), after=str(winners[i + 1]))
        for i in changes
    ]


def published_range(rows: Sequence[SizeRow]) -> tuple[float, float] | None:
    """Smallest and largest predicted speed-up in the published range of sizes."""
    low, high = PUBLISHED_BYTES
    ratios = [row.hierarchical_speed_up for row in rows if low <= row.bytes <= high]
    return (min(ratios), max(ratios)) if ratios else None
