"""A proxy process: moves chunks between pinned mailboxes of one rank and TCP sockets.

Run as ``python -m weft.kernels.host_proxy TASK`` by host_link; imports nothing heavy.
The sender waits for flags that the kernel sets, the receiver sets flags that the kernel
waits for. A flag is put back by whoever consumes the chunk, before the chunk moves on.
"""

from __future__ import annotations

import json
import mmap
import os
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
MAX_SEND_BYTES = 256 << 10
SOCKET_BUFFER_BYTES = 4 << 20
LATE_S = 0.05  # without a chunk for so long, a rank says that it is there and waits itself
SPIN_S = 2.0  # after the last chunk, before the proxy starts to sleep between looks


FOREVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class Layout:
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
    """The shared memory, and when to give up."""

    def __init__(self, layout: Layout, memory: memoryview, parent: int) -> None:
        self.layout = layout
        self.memory = memory
        self._parent = parent
        self._busy_until = time.monotonic() + SPIN_S

    def until(self, ready: Callable[[], bool], end: float = FOREVER) -> bool:
        """Look until ``ready()`` or ``end``; False when the communicator is closed or gone."""
        looks = 0
        while not ready():
            looks += 1
            if looks % 256 == 0:
                if self.memory[self.layout.stop] or os.getppid() != self._parent:
                    return False
                now = time.monotonic()
                if now > end:
                    return True
                if now > self._busy_until:
                    time.sleep(0.0002)
        return True

    def worked(self) -> None:
        """Something moved: stay awake for the next."""
        self._busy_until = time.monotonic() + SPIN_S


def ready_run(flags: memoryview, first: int, total: int) -> int:
    """How many chunks from ``first`` on are ready, without a gap."""
    gap = bytes(flags[first:total]).find(0)
    return total - first if gap < 0 else gap


def send_calls(proxy: Proxy, links: list[socket.socket], lane: Lane) -> None:
    """Send this lane's share of one call after the other to all other nodes."""
    memory, shapes = proxy.memory, proxy.layout.shape
    parity, seen = 1, [0, 0]
    while proxy.until(partial(_has_changed, memory, shapes + 16 * parity + 8, seen[parity])):
        part, chunk, seen[parity] = struct.unpack_from("<III", memory, shapes + 16 * parity)
        for header, data in _runs(proxy, parity, (part, chunk, seen[parity]), lane):
            for link in links:
                send_all(link, header, data)
            proxy.worked()
        parity ^= 1


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
        count = ready_run(flags, first, min(end, first + most))
        flags[first : first + count] = bytes(count)
        begin = layout.outbox + parity * layout.part_bytes + first * shape[1] * VECTOR_BYTES
        size = part_size(first, count, shape)
        yield HEADER.pack(parity, first, *shape, size), memory[begin : begin + size]
        first += count


def _has_changed(memory: memoryview, at: int, seen: int) -> bool:
    return int.from_bytes(memory[at : at + 4], "little") != seen


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
    layout, memory = proxy.layout, proxy.memory
    header = bytearray(HEADER.size)
    while receive(proxy, link, memoryview(header)):
        parity, first, _, chunk, size = HEADER.unpack_from(header)
        if size == 0:
            memory[layout.entered + 4 * node :][:4] = first.to_bytes(4, "little")
            continue
        box = parity * layout.nodes + node
        begin = layout.inbox + box * layout.part_bytes + first * chunk * VECTOR_BYTES
        flag = layout.in_flags + box * layout.max_chunks + first
        flags = memory[flag : flag + -(-size // (chunk * VECTOR_BYTES))]
        if not receive(proxy, link, memory[begin : begin + size], flags, chunk * VECTOR_BYTES):
            return
        proxy.worked()


def receive(
    proxy: Proxy,
    link: socket.socket,
    target: memoryview,
    flags: memoryview | None = None,
    chunk_bytes: int = 1,
) -> bool:
    """Fill ``target``, setting a flag for every whole chunk; False when nothing more comes."""
    got = marked = 0

    def progress() -> bool:
        nonlocal got, marked
        try:
            count = link.recv_into(target[got:], 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        if count == 0:
            raise ConnectionError("the other node has gone")
        got += count
        if flags is not None:
            whole = len(flags) if got == len(target) else got // chunk_bytes
            flags[marked:whole] = b"\1" * (whole - marked)
            marked = whole
        return got == len(target)

    return proxy.until(progress)


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
    layout = Layout(nodes=task["nodes"], part_bytes=task["part_bytes"])
    memory = memoryview(mmap.mmap(task["memory"], layout.num_bytes))
    proxy = Proxy(layout, memory, task["parent"])
    links = {int(node): prepare(socket.socket(fileno=f)) for node, f in task["sockets"].items()}
    try:
        if task["role"] == "send":
            send_calls(proxy, list(links.values()), Lane(**task["lane"]))
        else:
            ((node, link),) = links.items()
            receive_calls(proxy, node, link)
    except ConnectionError:
        pass  # the kernel's own bound turns silence into an error that names the rank
    os._exit(0)


if __name__ == "__main__":
    main()
