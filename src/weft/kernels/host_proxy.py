"""A proxy process: moves chunks between pinned mailboxes of one rank and TCP sockets.

Run as ``python -m weft.kernels.host_proxy TASK`` by host_link; imports nothing heavy.
The sender waits for flags that the kernel sets, the receiver sets flags that the kernel
waits for. A flag is put back by whoever consumes the chunk, before the chunk moves on.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

# A header of no bytes carries, in place of the first chunk, an epoch that its sender has entered.
HEADER = struct.Struct("<IIIII")  # parity, first chunk, vectors: of the part, of a chunk; bytes
VECTOR_BYTES = 16
MIN_CHUNK_VECTORS = 32
PART_BITS = 26  # of a shape word: epoch (32 bits), chunk / MIN_CHUNK_VECTORS (6), part
MAX_SEND_BYTES = 256 << 10
SOCKET_BUFFER_BYTES = 4 << 20
STAGING_BYTES = 16 << 10  # a message up to this size takes one system call
LATE_S = 0.05  # without a chunk for so long, a rank says that it is there and waits itself
SPIN_S = 0.002  # after the last chunk, before a proxy pauses between looks
MAX_PAUSE_S = 0.0005  # of a sender; nothing wakes it
MAX_WAIT_MS = 50  # of a receiver; what comes wakes it

FOREVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class LinkMemory:
    """Offsets inside the shared memory of one rank."""

    nodes: int
    part_bytes: int  # a multiple of the page size

    stop = 0
    shape = 64
    entered = 128
    out_flags = 4096

    @property
    def max_chunks(self) -> int:
        """Chunks of one part if they are as small as they can be, in whole pages of flags."""
        chunks = self.part_bytes // (VECTOR_BYTES * MIN_CHUNK_VECTORS)
        return -(-chunks // 4096) * 4096

    @property
    def in_flags(self) -> int:
        """Offset of [parity][node][chunk]."""
        return self.out_flags + 2 * self.max_chunks

    @property
    def outbox(self) -> int:
        """Offset of [parity][part]."""
        return self.in_flags + 2 * self.nodes * self.max_chunks

    @property
    def inbox(self) -> int:
        """Offset of [parity][node][part]."""
        return self.outbox + 2 * self.part_bytes

    @property
    def num_bytes(self) -> int:
        """Everything."""
        return self.inbox + 2 * self.nodes * self.part_bytes


@dataclass(frozen=True, kw_only=True)
class Lane:
    """Which share of the chunks of every call a pair of proxies moves."""

    index: int
    count: int


class Proxy:
    """The shared memory, how to wait, and when to give up."""

    def __init__(
        self,
        layout: LinkMemory,
        memory: memoryview,
        parent: int,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """pause: rest for at most so many seconds."""
        self.layout = layout
        self.memory = memory
        self._parent = parent
        self._pause = pause
        self._moved = time.monotonic()

    def until(self, ready: Callable[[], bool], end: float = FOREVER) -> bool:
        """Look until ``ready()`` or ``end``; False when the communicator is closed or gone.

        Where nothing has moved for SPIN_S, a sixteenth of that time lies between two looks: a
        call comes late by no more than that part of the gap before it.
        """
        looks, awake = 0, True
        while not ready():
            looks += 1
            if awake and looks % 64:
                continue
            if self.memory[self.layout.stop] or os.getppid() != self._parent:
                return False
            now = time.monotonic()
            if now > end:
                return True
            awake = now - self._moved < SPIN_S
            if not awake:
                self._pause(min((now - self._moved) / 16, MAX_PAUSE_S))
        return True

    def worked(self) -> None:
        """Something moved: stay awake for the next."""
        self._moved = time.monotonic()


def unpack_shape(word: int) -> tuple[int, int, int]:
    """(vectors of the part, of a chunk, epoch) of the word by which a kernel announces a call."""
    low = word & 0xFFFFFFFF
    return low & (1 << PART_BITS) - 1, (low >> PART_BITS) * MIN_CHUNK_VECTORS, word >> 32


def ready_run(flags: memoryview, first: int, total: int) -> int:
    """How many chunks from ``first`` on are ready, without a gap."""
    gap = bytes(flags[first:total]).find(0)
    return total - first if gap < 0 else gap


def send_calls(proxy: Proxy, links: list[socket.socket], lane: Lane) -> None:
    """Send this lane's share of one call after the other to all other nodes.

    Calls of which the lane has no share wait for nobody here: it may find that any number of
    them have come and gone. A call of which it has one stays until the lane has sent it.
    """
    at, seen = proxy.layout.shape, [0, 0]
    words = proxy.memory[at : at + 16].cast("Q")

    def announced() -> bool:
        return words[0] != seen[0] or words[1] != seen[1]

    def oldest() -> int:
        """The parity of the older of the calls that wait; what came before it is seen with it."""
        if words[1] == seen[1]:
            return 0
        if words[0] == seen[0]:
            return 1
        return int((words[0] - words[1]) >> 32 & 0xFFFFFFFF < 1 << 31)

    while proxy.until(announced):
        parity = oldest()
        seen[parity] = words[parity]
        for header, data in _runs(proxy, parity, unpack_shape(seen[parity]), lane):
            for link in links:
                send_all(link, header, data)
            proxy.worked()


def _runs(
    proxy: Proxy, parity: int, call: tuple[int, int, int], lane: Lane
) -> Iterator[tuple[bytes, memoryview]]:
    """(header, data) of every run of chunks of one call, as the kernel completes them.

    call: vectors of the part, vectors of a chunk, epoch.
    """
    layout, memory, shape = proxy.layout, proxy.memory, call[:2]
    start = layout.out_flags + parity * layout.max_chunks
    flags = memory[start : start + layout.max_chunks]
    total = -(-shape[0] // shape[1])
    first, end = total * lane.index // lane.count, total * (lane.index + 1) // lane.count
    most = max(1, MAX_SEND_BYTES // (shape[1] * VECTOR_BYTES))
    late = time.monotonic() + LATE_S
    while first < end:
        if not proxy.until(partial(_is_set, flags, first), late):
            return
        if not flags[first]:
            yield HEADER.pack(parity, call[2], *shape, 0), memory[:0]
            late = FOREVER
            continue
        count = ready_run(flags, first, min(end, first + most)) if first + 1 < end else 1
        flags[first : first + count] = bytes(count)
        begin = layout.outbox + parity * layout.part_bytes + first * shape[1] * VECTOR_BYTES
        size = part_size(first, count, shape)
        yield HEADER.pack(parity, first, *shape, size), memory[begin : begin + size]
        first += count


def _is_set(flags: memoryview, chunk: int) -> bool:
    return flags[chunk] != 0


def part_size(first: int, count: int, shape: tuple[int, int]) -> int:
    """Bytes of ``count`` chunks from ``first`` on; the last chunk of a part may be short."""
    part, chunk = shape
    return (min(part, (first + count) * chunk) - first * chunk) * VECTOR_BYTES


def send_all(link: socket.socket, header: bytes, data: memoryview) -> None:
    """Header and data in as few system calls as possible."""
    sent = link.sendmsg([header, data]) - len(header)
    while sent < 0:
        sent += link.send(header[sent:])
    while sent < len(data):
        sent += link.send(data[sent:])


def receive_calls(proxy: Proxy, node: int, link: socket.socket) -> None:
    """Put what ``node`` sends where the kernel looks for it."""
    staging, held = memoryview(bytearray(STAGING_BYTES)), 0
    inbox = NodeInbox(proxy, node)
    while got := receive(proxy, link, staging[held:]):
        held, start = held + got, 0
        while held - start >= HEADER.size:
            header = HEADER.unpack_from(staging, start)
            start += HEADER.size
            here = min(held - start, header[-1])
            if not inbox.put(header, staging[start : start + here], partial(receive, proxy, link)):
                return
            start += here
        held -= start
        staging[:held] = bytes(staging[start : start + held])


class NodeInbox:
    """What one other node sends."""

    def __init__(self, proxy: Proxy, node: int) -> None:
        layout, memory = proxy.layout, proxy.memory
        self._entered = memory[layout.entered + 4 * node :][:4]
        boxes = [parity * layout.nodes + node for parity in range(2)]
        part, chunks = layout.part_bytes, layout.max_chunks
        self._data = [memory[layout.inbox + box * part :][:part] for box in boxes]
        self._flags = [memory[layout.in_flags + box * chunks :][:chunks] for box in boxes]

    def put(
        self, header: tuple[int, ...], begun: memoryview, more: Callable[[memoryview], int]
    ) -> bool:
        """A message of which ``begun`` is here; False when the rest does not come.

        A chunk's flag is set as soon as the chunk is whole.
        """
        parity, first, _, chunk, size = header
        if size == 0:
            self._entered[:] = first.to_bytes(4, "little")
            return True
        chunk_bytes, got, marked = chunk * VECTOR_BYTES, len(begun), first
        data, flags = self._data[parity], self._flags[parity]
        at = first * chunk_bytes
        data[at : at + got] = begun
        while True:
            whole = first + (got // chunk_bytes if got < size else -(-size // chunk_bytes))
            flags[marked:whole] = b"\1" * (whole - marked)
            marked = whole
            if got == size:
                return True
            count = more(data[at + got : at + size])
            if count == 0:
                return False
            got += count


def receive(proxy: Proxy, link: socket.socket, target: memoryview) -> int:
    """Bytes that have come into ``target``, at least one; 0 when nothing more comes."""
    count = 0

    def come() -> bool:
        nonlocal count
        try:
            count = link.recv_into(target, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if count == 0:
            raise ConnectionError("the other node has gone")
        return True

    proxy.until(come)
    proxy.worked()
    return count


def wait_for(link: socket.socket) -> Callable[[float], object]:
    """A pause that ends when something comes over ``link``."""
    poller = select.poll()
    poller.register(link, select.POLLIN)
    return lambda _: poller.poll(MAX_WAIT_MS)


def prepare(link: socket.socket) -> socket.socket:
    """A blocking socket without delays."""
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        link.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
    return link


def main() -> None:
    """Run one proxy until its communicator is closed or its process has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    task = json.loads(sys.argv[1])
    layout = LinkMemory(nodes=task["nodes"], part_bytes=task["part_bytes"])
    memory = memoryview(mmap.mmap(task["memory"], layout.num_bytes))
    links = {int(node): prepare(socket.socket(fileno=f)) for node, f in task["sockets"].items()}
    try:
        if task["role"] == "send":
            proxy = Proxy(layout, memory, task["parent"])
            send_calls(proxy, list(links.values()), Lane(**task["lane"]))
        else:
            ((node, link),) = links.items()
            proxy = Proxy(layout, memory, task["parent"], wait_for(link))
            receive_calls(proxy, node, link)
    except ConnectionError:
        pass  # the kernel's own bound turns silence into an error that names the rank
    os._exit(0)


if __name__ == "__main__":
    main()
