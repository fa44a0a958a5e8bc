"""The packet protocol: epochs, words of data and flag, and where each slice lands.

A word is 8 bytes, {4 bytes of data, 4 bytes of flag}, stored and loaded whole. Over
NVLink two words travel as one 16-byte packet {d0, flag, d1, flag}; over a network that
keeps only 8-byte writes whole, a word is the packet. The flag is the call's epoch, so a
reader knows that a word is there by the word itself.

Two buffers, taken by turns (epoch parity), are enough for every algorithm of weft: a rank
can finish call e + 1 only with data that depends on every rank's input of call e + 1, so
when it writes for e + 2 every rank has begun e + 1, has left e, and reads none of the
buffer of e any more. A call without elements exchanges nothing, so it takes no epoch.

Epochs run from 1 to 2^32 - 2 and then from 1 again: an even number of them, so parity
still alternates at the wrap. In the last two calls of a lap every rank clears the buffer
it has just read; no flag of one lap is then taken for one of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from weft.allreduce.program import Program

LAST_EPOCH: Final = 2**32 - 2
NO_EPOCH: Final = 0

Packet = Literal["16-byte", "8-byte"]

WORDS_PER_PACKET: Final[dict[Packet, int]] = {"16-byte": 2, "8-byte": 1}
WORD_DATA_BYTES: Final = 4
WORD_BYTES: Final = 8

Words = NDArray[np.uint32]


def next_epoch(epoch: int) -> int:
    return 1 if epoch == LAST_EPOCH else epoch + 1


def buffer_index(epoch: int) -> int:
    """Which of the two buffers the call uses."""
    return epoch & 1


def clears_after(epoch: int) -> bool:
    """Whether a rank clears the buffer of this call once it has read it."""
    return epoch > LAST_EPOCH - 2


def num_words(num_bytes: int, packet: Packet) -> int:
    """Words that ``num_bytes`` of data take, whole packets."""
    per_packet = WORDS_PER_PACKET[packet]
    packets = -(-num_bytes // (WORD_DATA_BYTES * per_packet))
    return packets * per_packet


def pack(values: NDArray[Any], packet: Packet) -> Words:
    """The data of a slice as words, zeros behind its end."""
    raw = np.ascontiguousarray(values).view(np.uint8)
    padded = np.zeros(num_words(len(raw), packet) * WORD_DATA_BYTES, dtype=np.uint8)
    padded[: len(raw)] = raw
    return padded.view(np.uint32)


def unpack(words: Words, count: int, storage: np.dtype[Any]) -> NDArray[Any]:
    """The first ``count`` values that the words hold."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    return raw[: count * storage.itemsize].view(storage)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one slice lands in the receiver's buffer."""

    first: int
    words: int

    @property
    def range(self) -> slice:
        return slice(self.first, self.first + self.words)


def receive_slots(
    program: Program, rank: int, element_bytes: int, packet: Packet
) -> dict[tuple[int, int], Slot]:
    """Slots of (step, source), packed one after another in the order of the program."""
    slots: dict[tuple[int, int], Slot] = {}
    first = 0
    for index, step in enumerate(program):
        for source, combine in step.receives(rank):
            words = num_words((combine.stop - combine.start) * element_bytes, packet)
            slots[index, source] = Slot(first=first, words=words)
            first += words
    return slots


def buffer_bytes(programs: Sequence[Program], element_bytes: int, packet: Packet) -> int:
    """Bytes that both receive buffers of a rank take together, for the rank with most."""
    most = 0
    for rank, program in enumerate(programs):
        slots = receive_slots(program, rank, element_bytes, packet)
        most = max(most, sum(slot.words for slot in slots.values()))
    return 2 * most * WORD_BYTES
