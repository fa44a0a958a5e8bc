"""The memory of some ranks as the machine sees it, and one communicator in it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from adversary.machine import Patch, Region
from adversary.proxies import Proxies
from adversary.shmem import Heaps
from allreduce_reference import STORAGE, Values, from_float, to_float
from weft.kernels.endpoint import ENTERED_OFFSET, EPOCH_OFFSET, HEADER_BYTES, CommRecord
from weft.kernels.fault import FaultRecord

ARENA_BYTES = 4 << 20
MAX_BLOCKS = 16  # kMaxBlocks of host/ptx.cuh
EMPTY = 0xFFFFFFFF
FORBIDDEN = 0xFFFFFFFE  # the owner of words that nobody may write
FAULT_RECORD = 0xFFFFFFFD  # and of what a kernel tells its host
ELEMENTS = {"float32": 0, "float16": 1, "bfloat16": 2}

_arena = np.zeros(ARENA_BYTES + 64, dtype=np.uint8)
_begin = -_arena.ctypes.data % 64


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Ranks, in how many nodes, and their elements: what a compiled kernel is made for."""

    ranks: int
    nodes: int = 1
    dtype: str = "bfloat16"

    @property
    def local(self) -> int:
        return self.ranks // self.nodes

    @property
    def item(self) -> int:
        return STORAGE[self.dtype].itemsize

    @property
    def per_vector(self) -> int:
        return 16 // self.item

    def defines(self) -> tuple[tuple[str, int], ...]:
        element = ELEMENTS[self.dtype]
        return (("WEFT_WORLD", self.ranks), ("WEFT_NODES", self.nodes), ("WEFT_ELEMENT", element))


class Arena:
    """Memory handed out piece by piece; what lies between the pieces nobody may write."""

    def __init__(self) -> None:
        self.bytes = _arena[_begin : _begin + ARENA_BYTES]
        self.address = int(self.bytes.ctypes.data)
        self.used = 64
        self.regions: list[Region] = [Region(0, 64, FORBIDDEN, 0)]

    def take(self, num_bytes: int) -> int:
        """The offset of ``num_bytes``, a multiple of 64, with a forbidden line behind them."""
        first = self.used
        end = first + -(-num_bytes // 16) * 16
        self.used = -(-(end + 16) // 64) * 64
        assert self.used <= ARENA_BYTES
        self.bytes[first : self.used] = 0
        self.regions.append(Region(end, self.used, FORBIDDEN, 0))
        return first

    def view(self, offset: int, count: int, dtype: Any = np.uint32) -> Values:
        """``count`` values from ``offset`` on, as they are in memory."""
        size = count * np.dtype(dtype).itemsize
        return self.bytes[offset : offset + size].view(dtype)

    def mailbox(self, owner: int, num_bytes: int) -> int:
        """Idle words that others fill and ``owner`` puts back."""
        first = self.take(num_bytes)
        self.bytes[first : first + num_bytes] = 0xFF
        self.regions.append(Region(first, first + num_bytes, owner, 0))
        return first


@dataclass(kw_only=True)
class World:
    """One communicator of ``shape.ranks`` ranks and the calls that were prepared for it."""

    shape: Shape
    mailbox_bytes: int
    first_epoch: int
    timeout_ns: int
    rng: np.random.Generator
    special: bool = False
    transport: str = "peer"
    part_bytes: int = 0  # of the largest call, what one rank of a node sums
    seed: int = 0
    patches: tuple[Patch, ...] = ()
    arena: Arena = field(default_factory=Arena)

    def __post_init__(self) -> None:
        ranks, arena = range(self.shape.ranks), self.arena
        size = HEADER_BYTES + 2 * self.mailbox_bytes
        self.headers = [arena.take(size) for _ in ranks]
        self.faults = [arena.take(ctypes.sizeof(FaultRecord)) for _ in ranks]
        for fault in self.faults:
            arena.regions.append(Region(fault, fault + 16, FAULT_RECORD, 0))
        self.comms = [self._comm(rank) for rank in ranks]
        for rank, header in enumerate(self.headers):
            arena.view(header + EPOCH_OFFSET, MAX_BLOCKS)[:] = self.first_epoch
            arena.view(header + ENTERED_OFFSET, 32)[:] = self.first_epoch
            boxes = header + HEADER_BYTES
            arena.bytes[boxes : header + size] = 0xFF
            arena.regions.append(Region(boxes, header + size, rank, 0))

    def _comm(self, rank: int) -> CommRecord:
        ranks, base = self.shape.ranks, self.arena.address
        record = CommRecord(
            fault=base + self.faults[rank],
            mailbox_bytes=self.mailbox_bytes,
            timeout_ns=self.timeout_ns,
            rank=rank,
        )
        local = self.shape.local
        for step in range(ranks):
            peer = (rank + step) % ranks
            if self.transport == "peer" or peer // local == rank // local:
                record.peer[step] = base + self.headers[peer]
        return record

    @cached_property
    def proxies(self) -> Proxies:
        """Pinned memory and the processes that move it."""
        return Proxies(self, self.patches, self.seed)

    @cached_property
    def shmem(self) -> Heaps:
        """Memory for puts."""
        return Heaps(self)

    def tensor(self, values: Values, misplaced: int = 0) -> tuple[Values, int]:
        """A tensor in memory and its address; ``misplaced``: elements off a multiple of 16."""
        offset = self.arena.take((len(values) + misplaced) * values.itemsize)
        offset += misplaced * values.itemsize
        view = self.arena.view(offset, len(values), values.dtype)
        view[:] = values
        return view, self.arena.address + offset

    def values(self, count: int) -> Values:
        """Random elements, now and then such as only bits tell apart."""
        dtype = self.shape.dtype
        found = from_float(self.rng.standard_normal(count, dtype=np.float32), dtype)
        if self.special:
            words = np.array(_SPECIAL[dtype], dtype=np.uint32).astype(_bits(found.dtype))
            where = self.rng.random(count) < 0.3
            found.view(words.dtype)[where] = self.rng.choice(words, int(where.sum()))
        return found

    def sum_in_order(self, parts: Sequence[Values]) -> Values:
        """From zero, in float32, rounded once: what the kernels do."""
        total = np.zeros(len(parts[0]), dtype=np.float32)
        with np.errstate(all="ignore"):
            for part in parts:
                total = total + to_float(part, self.shape.dtype)
        return from_float(total, self.shape.dtype)

    def add(self, one: Values, other: Values) -> Values:
        """Two parts, rounded (no zero before them: -0 + -0 stays -0)."""
        with np.errstate(all="ignore"):
            total = to_float(one, self.shape.dtype) + to_float(other, self.shape.dtype)
        return from_float(total, self.shape.dtype)

    def fault(self, rank: int) -> FaultRecord:
        """What a rank's kernel told its host."""
        return FaultRecord.from_address(self.arena.address + self.faults[rank])

    def unrest(self, calls: int) -> str | None:
        """What is not as it should be when every call is over, or None."""
        last = (self.first_epoch + calls) % 2**32
        for rank, header in enumerate(self.headers):
            view = self.arena.view
            boxes = view(header + HEADER_BYTES, self.mailbox_bytes // 2)
            if (boxes != EMPTY).any():
                return f"rank {rank}: {int((boxes != EMPTY).sum())} words of its mailboxes are not idle"
            if (view(header + EPOCH_OFFSET, MAX_BLOCKS) != last).any():
                return f"rank {rank}: an epoch is not {last}"
            if view(header, 2).any() or self.fault(rank).raised:
                return f"rank {rank}: a fault without a cause"
        if self.transport == "peer":
            return None
        return (self.proxies if self.transport == "tcp" else self.shmem).unrest()


def same(found: Values, expected: Values, dtype: str) -> Values:
    """Where two tensors hold the same bits; any NaN is as good as any other."""
    bits = _bits(found.dtype)
    numbers = to_float(found, dtype), to_float(expected, dtype)
    return (found.view(bits) == expected.view(bits)) | (np.isnan(numbers[0]) & np.isnan(numbers[1]))


def _bits(dtype: np.dtype[Any]) -> Any:
    return np.uint32 if dtype.itemsize == 4 else np.uint16


# Idle words, what stands in for them, both zeros, infinities, NaNs, the smallest numbers.
_SPECIAL = {
    "float32": (0xFFFFFFFF, 0x7FFFFFFF, 0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000, 1),
    "float16": (0xFFFF, 0xFFFF, 0xFFFF, 0x7FFF, 0, 0x8000, 0x7C00, 0xFC00, 0x7E00, 1, 0x3FF, 0x400),
    "bfloat16": (0xFFFF, 0xFFFF, 0xFFFF, 0x7FFF, 0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 1),
}
