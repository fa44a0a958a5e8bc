"""Shared memory between the ranks of one machine: outboxes, progress counters, time-outs.

Every rank has an outbox for each of two buffers, taken by turns, and a control block. A
rank writes a slice to its own outbox, then raises its progress counter; readers wait for
the counter, then read. Nothing is written twice in a call, and a rank writes to a buffer
again two calls later, when every rank has left the call that used it (docs/allreduce.md
says why). Data before counter needs stores to be seen in order, which x86-64 guarantees;
other processors use sockets.
"""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from weft.allreduce.errors import lost_rank_error
from weft.errors import CommunicationError

OUTBOX_BYTES: Final = 2 * 1024 * 1024
"""Bytes that one rank can publish in one call."""

_PAGE: Final = 4096
_FIELDS: Final = 16
_STEPS: Final = 1 << 16

_PROGRESS: Final = 0
_GAVE_UP: Final = 1
_PROCESS: Final = 2
_HEADERS: Final = 3
_HEADER_FIELDS: Final = 3

_SPINS_BETWEEN_CHECKS: Final = 64
_SPIN_S: Final = 0.002
_PROCESS_CHECK_S: Final = 0.25
_SLEEP_S: Final = 0.0001
_GRACE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Header:
    """What a rank says of its call; all ranks of a group must say the same."""

    count: int
    dtype: int
    algorithm: int


def unusable_reason() -> str | None:
    """Why this machine cannot share memory between ranks, or None."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"stores of a {platform.machine()} processor may be seen out of order"
    if not Path("/proc/self/stat").exists():
        return "the system has no /proc to see the other ranks in"
    return None


class Segment:
    """The memory that ``size`` ranks share, as rank ``rank`` of them sees it."""

    def __init__(self, path: str, size: int, rank: int, names: Sequence[int], timeout_s: float):
        self.size, self.rank, self.names, self.timeout_s = size, rank, tuple(names), timeout_s
        descriptor = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(descriptor, segment_bytes(size))
        finally:
            os.close(descriptor)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._fields = memoryview(self._map)[: size * _FIELDS * 8].cast("q")
        self._fields[rank * _FIELDS + _PROCESS] = os.getpid()
        self.epoch = 0

    def begin(self, header: Header) -> int:
        """Start a call: write its header; returns which of the two buffers it uses."""
        self.epoch += 1
        first = self._header_field(self.rank)
        for offset, value in enumerate((header.count, header.dtype, header.algorithm)):
            self._fields[first + offset] = value
        return self.epoch & 1

    def outbox(self, rank: int, buffer: int, start: int, stop: int) -> torch.Tensor:
        """Bytes ``start`` to ``stop`` of a rank's outbox in one buffer, as uint8."""
        base = _control_bytes(self.size) + (rank * 2 + buffer) * OUTBOX_BYTES
        return self._bytes[base + start : base + stop]

    def publish(self, step: int) -> None:
        """Everything that this rank sends in ``step`` is in its outbox."""
        self._fields[self.rank * _FIELDS + _PROGRESS] = self.epoch * _STEPS + step + 1

    def header(self, rank: int) -> Header:
        """A rank's header of the current call; valid once it has published step 0."""
        first = self._header_field(rank)
        return Header(*self._fields[first : first + _HEADER_FIELDS].tolist())

    def wait(self, source: int, step: int, name: str) -> None:
        """Until ``source`` has published ``step``.

        LostRankError after the time-out, or as soon as a process of the group is gone.
        """
        fields, place = self._fields, source * _FIELDS + _PROGRESS
        wanted = self.epoch * _STEPS + step + 1
        if fields[place] >= wanted:
            return
        start = time.monotonic()
        next_check_s = _PROCESS_CHECK_S
        while True:
            for _ in range(_SPINS_BETWEEN_CHECKS):
                if fields[place] >= wanted:
                    return
                os.sched_yield()
            waited = time.monotonic() - start
            if waited > self.timeout_s or self._any_gave_up():
                self._give_up(name, wanted)
            if waited > next_check_s:
                next_check_s += _PROCESS_CHECK_S
                self._check_processes(name, source, wanted)
            if waited > _SPIN_S:
                time.sleep(_SLEEP_S)

    def give_up(self) -> None:
        """Tell the other ranks that this one has failed, so that they fail too."""
        self._fields[self.rank * _FIELDS + _GAVE_UP] = max(self.epoch, 1)

    def close(self) -> None:
        """Let go of the memory (freed when the last rank does)."""
        self._fields.release()
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def _check_processes(self, name: str, source: int, wanted: int) -> None:
        """Raise where a process is gone and ``source`` has not come meanwhile."""
        gone = [rank for rank in range(self.size) if not self._is_running(rank)]
        if gone and self._fields[source * _FIELDS + _PROGRESS] < wanted:
            self.give_up()
            missing = [self.names[rank] for rank in gone]
            raise lost_rank_error(self.names[self.rank], missing, name, self.epoch)

    def _is_running(self, rank: int) -> bool:
        """Whether the rank's process exists and is no zombie."""
        process = self._fields[rank * _FIELDS + _PROCESS]
        try:
            status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] not in ("Z", "X")

    def _any_gave_up(self) -> bool:
        return any(self._fields[rank * _FIELDS + _GAVE_UP] for rank in range(self.size))

    def _give_up(self, name: str, wanted: int) -> None:
        """Say so to all, see who says nothing and stands behind, and raise."""
        self.give_up()
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline and len(self._silent(wanted)) > 1:
            time.sleep(_GRACE_S / 50)
        missing = [self.names[rank] for rank in self._silent(wanted)]
        if not missing:
            raise CommunicationError(
                f"rank {self.names[self.rank]}: all-reduce ended in step {name!r} of call "
                f"{self.epoch}: another rank of the group failed"
            )
        raise lost_rank_error(self.names[self.rank], missing, name, self.epoch)

    def _silent(self, wanted: int) -> list[int]:
        """Ranks behind ``wanted`` that did not give up; who has left the call is not behind."""
        fields, ranks = self._fields, range(self.size)
        behind = [rank for rank in ranks if fields[rank * _FIELDS + _PROGRESS] < wanted]
        return [rank for rank in behind if not fields[rank * _FIELDS + _GAVE_UP]]

    def _header_field(self, rank: int) -> int:
        return rank * _FIELDS + _HEADERS + (self.epoch & 1) * _HEADER_FIELDS


def create_file(size: int) -> str:
    """Make the file of a segment, all zeros; whoever made it unlinks it after the mapping."""
    shared = Path("/dev/shm")  # noqa: S108 - the system's shared memory
    directory = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    try:
        descriptor, path = tempfile.mkstemp(prefix="weft-", dir=directory)
        try:
            os.posix_fallocate(descriptor, 0, segment_bytes(size))
        except OSError:
            Path(path).unlink()
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CommunicationError(f"no shared memory in {directory}: {error.strerror}") from None
    return path


def segment_bytes(size: int) -> int:
    """Bytes of the segment of ``size`` ranks."""
    return _control_bytes(size) + size * 2 * OUTBOX_BYTES


def _control_bytes(size: int) -> int:
    return -(-size * _FIELDS * 8 // _PAGE) * _PAGE
