"""Who pairs with whom in recursive doubling and halving, for any number of ranks.

With p the largest power of two not above n and r = n - p: of the first 2r ranks each
odd one folds its values into the even one before it and waits; the p ranks left pair
at distances 1, 2, 4, ...; at the end the folded ranks get the result back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PairStep:
    """One step: how many ranks of one node at most send out of it, and whether any stays in."""

    senders_per_node: int
    has_intra: bool


class Pairing:
    """The pairs of ``size`` ranks, of which ``per_node`` neighbours share a node."""

    def __init__(self, size: int, per_node: int) -> None:
        self.size, self.per_node = size, per_node
        self.active = 1 << (size.bit_length() - 1)
        self.num_folded = size - self.active

    def rank_of(self, index: int) -> int:
        """The rank that holds place ``index`` among the active ones."""
        return 2 * index if index < self.num_folded else index + self.num_folded

    def index_of(self, rank: int) -> int | None:
        """The place of an active rank, None for a folded one."""
        if rank < 2 * self.num_folded:
            return None if rank % 2 else rank // 2
        return rank - self.num_folded

    @property
    def distances(self) -> list[int]:
        return [1 << bit for bit in range(self.active.bit_length() - 1)]

    @cached_property
    def fold_steps(self) -> list[PairStep]:
        """The steps that fold in and give back (none for a power of two)."""
        if not self.num_folded:
            return []
        even = 2 * np.arange(self.num_folded)
        return [self._step(even + 1, even), self._step(even, even + 1)]

    @cached_property
    def exchange_steps(self) -> list[PairStep]:
        """The pairwise exchanges, nearest first."""
        index = np.arange(self.active)
        return [
            self._step(self._ranks_of(index), self._ranks_of(index ^ distance))
            for distance in self.distances
        ]

    @property
    def steps(self) -> list[PairStep]:
        return self.fold_steps + self.exchange_steps

    def _ranks_of(self, index: Indices) -> Indices:
        return np.where(index < self.num_folded, 2 * index, index + self.num_folded)

    def _step(self, source: Indices, target: Indices) -> PairStep:
        source_node = source // self.per_node
        leaves = source_node != target // self.per_node
        senders = np.bincount(source_node[leaves]).max() if leaves.any() else 0
        return PairStep(senders_per_node=int(senders), has_intra=not bool(leaves.all()))
