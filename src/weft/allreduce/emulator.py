"""The packet protocol between emulated ranks, with an adversary who delays and reorders.

Each rank has its two receive buffers in its own memory. A write of another rank is first
in flight; the adversary delivers its words one by one, in any order and as late as it
likes, and lets ranks act in any order, so that some run ahead as far as the protocol lets
them. The emulator raises ProtocolFault where a word lands on one not read yet, and gives
every rank that waits for a lost one the error of the real transports.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from weft.allreduce.algorithms import build
from weft.allreduce.errors import lost_rank_error
from weft.allreduce.numerics import STORAGE, Values, add_in_order
from weft.allreduce.packets import (
    NO_EPOCH,
    Packet,
    Slot,
    Words,
    buffer_index,
    clears_after,
    next_epoch,
    pack,
    receive_slots,
    unpack,
)
from weft.allreduce.program import Program, Send, Step, Topology
from weft.errors import CheckFailed, LostRankError


class ProtocolFault(CheckFailed):
    """The protocol let a buffer be overwritten before it was read."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Ways to break the protocol, to show that the emulator notices."""

    single_buffer: bool = False
    split_words: bool = False
    no_clear: bool = False
    epoch_for_empty: bool = False


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Rank that dies in its ``call``-th call, in ``step``, after ``sends`` of its sends."""

    rank: int
    call: int = 0
    step: int = 0
    sends: int = 0


@dataclass(frozen=True, kw_only=True)
class Call:
    """One all-reduce: one [count] array a rank, in the stored form of ``dtype``."""

    algorithm: str
    inputs: tuple[Values, ...]
    dtype: str

    @property
    def count(self) -> int:
        return len(self.inputs[0])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """results[call][rank], None where the rank did not get there; errors of the ranks.

    furthest_ahead: the most calls that one rank had begun more than another.
    """

    results: list[list[Values | None]]
    errors: dict[int, LostRankError]
    furthest_ahead: int


@dataclass(frozen=True, kw_only=True)
class _Wait:
    """What a blocked rank waits for."""

    source: int
    step: str
    epoch: int


class _Memory:
    """The two receive buffers of one rank."""

    def __init__(self, words: int, generator: np.random.Generator, stale_flags: int) -> None:
        self.data: Words = generator.integers(0, 2**32, (2, words), dtype=np.uint32)
        low, high = (1, stale_flags + 1) if stale_flags else (NO_EPOCH, NO_EPOCH + 1)
        self.flags: Words = generator.integers(low, high, (2, words), dtype=np.uint32)
        self.unread = np.zeros((2, words), dtype=bool)


class _Message:
    """A slice in flight: its words leave in a random order."""

    def __init__(
        self, *, target: int, buffer: int, slot: Slot, words: Words, epoch: int, held: bool
    ) -> None:
        self.target, self.buffer, self.slot = target, buffer, slot
        self.words, self.epoch, self.held = words, epoch, held
        self.data_left = list(range(slot.words))
        self.flags_left: list[int] = []


_Slots = list[dict[tuple[int, int], Slot]]
_Layout = tuple[list[Program], _Slots]


@lru_cache(maxsize=256)
def _layout(
    algorithm: str, topology: Topology, count: int, element_bytes: int, packet: Packet
) -> _Layout:
    programs = [build(algorithm, topology, count, rank) for rank in range(topology.ranks)]
    slots = [
        receive_slots(program, rank, element_bytes, packet) for rank, program in enumerate(programs)
    ]
    return programs, slots


@dataclass(kw_only=True)
class Emulator:
    """A sequence of calls on emulated ranks; ``run`` once."""

    topology: Topology
    calls: Sequence[Call]
    seed: int = 0
    packet: Packet = "16-byte"
    last_epoch: int = NO_EPOCH
    stale_flags: int = 0
    faults: Faults = field(default_factory=Faults)
    lost: Lost | None = None

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - an adversary, not a secret
        generator = np.random.default_rng(self.seed)
        self._layouts = [self._layout_of(call) for call in self.calls]
        words = max(_total_words(slots) for _, slots in self._layouts)
        ranks = range(self.topology.ranks)
        self._memory = [_Memory(words, generator, self.stale_flags) for _ in ranks]
        self._in_flight: list[_Message] = []
        self._waits: dict[int, _Wait] = {}
        self._results: list[list[Values | None]] = [[None for _ in ranks] for _ in self.calls]
        self._begun = [0 for _ in ranks]
        self._furthest = 0
        self._patience = [self._random.choice((1, 1, 4, 16)) for _ in ranks]

    def run(self) -> Outcome:
        """Run every call on every rank.

        Raises ProtocolFault. A lost rank shows in ``Outcome.errors``.
        """
        ranks = {rank: self._rank(rank) for rank in range(self.topology.ranks)}
        runnable = list(ranks)
        while runnable or self._in_flight:
            if runnable and (not self._in_flight or self._random.random() < 0.5):
                self._act(ranks, runnable)
            else:
                target = self._deliver()
                if target in self._waits and target not in runnable:
                    runnable.append(target)
        return Outcome(
            results=self._results, errors=self._time_out(), furthest_ahead=self._furthest
        )

    def _act(self, ranks: dict[int, Generator[None]], runnable: list[int]) -> None:
        """Let one rank go on until it waits, or for a random part of what it can do."""
        place = self._pick(len(runnable))
        rank = runnable[place]
        for _ in range(1 + self._pick(self._patience[rank])):
            try:
                next(ranks[rank])
            except StopIteration:
                self._waits.pop(rank, None)
                del runnable[place]
                return
            if rank in self._waits:
                del runnable[place]
                return

    def _rank(self, rank: int) -> Generator[None]:
        epoch = self.last_epoch
        for number, call in enumerate(self.calls):
            program = self._layouts[number][0][rank]
            self._begun[rank] += bool(program)
            self._furthest = max(self._furthest, self._begun[rank] - min(self._begun))
            values = call.inputs[rank].copy()
            if program or self.faults.epoch_for_empty:
                epoch = next_epoch(epoch)
            for index, step in enumerate(program):
                limit = self._sends_before_death(rank, number, index)
                for send in step.sends[:limit]:
                    self._write(number, rank, index, send, values, epoch)
                    yield
                if limit is not None:
                    return
                values = yield from self._combine(number, rank, index, step, values, epoch)
            if program and clears_after(epoch) and not self.faults.no_clear:
                self._memory[rank].flags[self._buffer(epoch)] = NO_EPOCH
            self._results[number][rank] = values

    def _sends_before_death(self, rank: int, call: int, step: int) -> int | None:
        lost = self.lost
        if lost is None or (lost.rank, lost.call, lost.step) != (rank, call, step):
            return None
        return lost.sends

    def _write(
        self, number: int, rank: int, index: int, send: Send, values: Values, epoch: int
    ) -> None:
        _, slots = self._layouts[number]
        self._in_flight.append(
            _Message(
                target=send.target,
                buffer=self._buffer(epoch),
                slot=slots[send.target][index, rank],
                words=pack(values[send.start : send.stop], self.packet),
                epoch=epoch,
                held=self._random.random() < 0.2,
            )
        )

    def _combine(
        self, number: int, rank: int, index: int, step: Step, values: Values, epoch: int
    ) -> Generator[None, None, Values]:
        after = values.copy()
        for combine in step.combines:
            parts = []
            for source in combine.sources:
                if source == rank:
                    parts.append(values[combine.start : combine.stop])
                    continue
                count = combine.stop - combine.start
                wait = _Wait(source=source, step=step.name, epoch=epoch)
                parts.append((yield from self._read(number, rank, index, count, wait)))
            after[combine.start : combine.stop] = add_in_order(parts, self.calls[number].dtype)
        return after

    def _read(
        self, number: int, rank: int, index: int, count: int, wait: _Wait
    ) -> Generator[None, None, Values]:
        """Wait until every word of the slot carries the epoch; take the data of those loads."""
        _, slots = self._layouts[number]
        where = slots[rank][index, wait.source].range
        buffer, memory = self._buffer(wait.epoch), self._memory[rank]
        while not (memory.flags[buffer, where] == wait.epoch).all():
            self._waits[rank] = wait
            yield
        self._waits.pop(rank, None)
        words = memory.data[buffer, where].copy()
        memory.unread[buffer, where] = False
        yield
        return unpack(words, count, STORAGE[self.calls[number].dtype])

    def _deliver(self) -> int:
        """Deliver some words of one message; the held ones only where nothing else is left."""
        place = self._pick(len(self._in_flight))
        message = self._in_flight[place]
        if message.held and self._random.random() < 0.9:
            place = self._pick(len(self._in_flight))
            message = self._in_flight[place]
        self._store(message)
        if not message.data_left and not message.flags_left:
            self._in_flight[place] = self._in_flight[-1]
            self._in_flight.pop()
        return message.target

    def _store(self, message: _Message) -> None:
        memory, first = self._memory[message.target], message.slot.first
        if self.faults.split_words and len(message.data_left) == message.slot.words:
            message.flags_left = list(message.data_left)
        if message.flags_left and self._random.random() < 0.5:
            taken = self._take(message.flags_left)
            memory.flags[message.buffer, [first + word for word in taken]] = message.epoch
            return
        taken = self._take(message.data_left)
        words = [first + word for word in taken]
        if memory.unread[message.buffer, words].any():
            raise ProtocolFault(
                f"rank {message.target}: epoch {message.epoch} overwrites a word not yet read"
            )
        memory.data[message.buffer, words] = message.words[taken]
        if not self.faults.split_words:
            memory.flags[message.buffer, words] = message.epoch
        memory.unread[message.buffer, words] = True

    def _take(self, left: list[int]) -> list[int]:
        """Some of the words that are left, in random order; often all."""
        if len(left) == 1 or self._random.random() < 0.5:
            taken = left.copy()
            left.clear()
            return taken
        self._random.shuffle(left)
        cut = self._pick(len(left))
        taken = left[cut:]
        del left[cut:]
        return taken

    def _time_out(self) -> dict[int, LostRankError]:
        """Nothing moves: every waiting rank says so to all; who says nothing is missing."""
        alive = set(self._waits)
        done = {rank for rank, value in enumerate(self._results[-1]) if value is not None}
        missing = sorted(set(range(self.topology.ranks)) - alive - done)
        return {
            rank: lost_rank_error(rank, missing, wait.step, wait.epoch)
            for rank, wait in self._waits.items()
        }

    def _buffer(self, epoch: int) -> int:
        return 0 if self.faults.single_buffer else buffer_index(epoch)

    def _layout_of(self, call: Call) -> _Layout:
        size = STORAGE[call.dtype].itemsize
        return _layout(call.algorithm, self.topology, call.count, size, self.packet)

    def _pick(self, size: int) -> int:
        return int(self._random.random() * size)


def _total_words(slots: _Slots) -> int:
    return max(sum(slot.words for slot in of_rank.values()) for of_rank in slots)
