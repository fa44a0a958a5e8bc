"""Symmetric memory of NVSHMEM: a heap a rank, reached by puts, or by loads and stores."""

from __future__ import annotations

from typing import Any

from adversary.machine import Region
from weft.kernels.nvshmem import WORDS_BYTES, ShmemRecord


class Heaps:
    """words | outbox [parity][part] | inbox [parity][node][part] of every rank."""

    def __init__(self, world: Any) -> None:
        shape, arena, part = world.shape, world.arena, world.part_bytes
        self._shape, self._part, self._base, self._arena = shape, part, arena.address, arena
        size = WORDS_BYTES + (2 + 2 * shape.nodes) * part
        self.heaps = [arena.take(size) for _ in range(shape.ranks)]
        self.heap_bytes = self.heaps[1] - self.heaps[0]
        self._inbox = WORDS_BYTES + 2 * part, size
        for rank, heap in enumerate(self.heaps):
            arena.view(heap, 32)[:] = world.first_epoch
            first, last = (heap + at for at in self._inbox)
            arena.bytes[first:last] = 0xFF
            arena.regions.append(Region(first, last, rank, 0))
        near = world.rng.random((shape.nodes, shape.nodes)) < world.rng.choice((0.0, 0.4))
        self._near = near | near.T

    def record(self, rank: int) -> ShmemRecord:
        node, place = divmod(rank, self._shape.local)
        record = ShmemRecord(heap=self._base + self.heaps[rank], part_bytes=self._part)
        for other in range(self._shape.nodes):
            peer = other * self._shape.local + place
            record.pe[other] = peer
            if self._near[node, other]:
                record.direct[other] = self._base + self.heaps[peer]
        return record

    def unrest(self) -> str | None:
        """Words of an inbox that are not idle, or None."""
        for rank, heap in enumerate(self.heaps):
            first, last = (heap + at for at in self._inbox)
            if (self._arena.bytes[first:last] != 0xFF).any():
                return f"rank {rank}: a word of its inbox is not idle"
        return None
