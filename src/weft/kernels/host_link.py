"""The rank's side of the TCP transport: pinned mailboxes and the proxy processes that move them.

Layout of the shared memory (``HostLinkRecord`` of link.cuh points into it; ``host_proxy``
reads and writes it on the other side)::

    control | out flags | in flags | outbox | inbox

The memory is an anonymous file: it disappears with the last process that has it open.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

import torch.distributed as dist

from weft.kernels.driver import checked, driver
from weft.kernels.host_proxy import LinkMemory
from weft.kernels.selection import GroupShape, num_vectors
from weft.kernels.support import host_identity
from weft.kernels.vote import gather

CONNECT_S = 60.0
MAX_LANES = 4  # pairs of proxies, and TCP connections, between two ranks
GREETING = struct.Struct("<16sII")  # token, node, lane


def record_at(base: int, memory: LinkMemory) -> HostLinkRecord:
    """What a kernel needs of mailboxes that lie at the address ``base``."""
    return HostLinkRecord(
        outbox=base + memory.outbox,
        inbox=base + memory.inbox,
        out_flag=base + memory.out_flags,
        in_flag=base + memory.in_flags,
        shape=base + memory.shape,
        entered=base + memory.entered,
        part_bytes=memory.part_bytes,
        max_chunks=memory.max_chunks,
    )


class HostLinkRecord(ctypes.Structure):
    """``struct HostLinkRecord`` of link.cuh."""

    _fields_ = (
        ("outbox", ctypes.c_uint64),
        ("inbox", ctypes.c_uint64),
        ("out_flag", ctypes.c_uint64),
        ("in_flag", ctypes.c_uint64),
        ("shape", ctypes.c_uint64),
        ("entered", ctypes.c_uint64),
        ("part_bytes", ctypes.c_uint64),
        ("max_chunks", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class HostLink:
    """Pinned memory of one rank, proxies that send and proxies that receive."""

    def __init__(self, group: dist.ProcessGroup, topology: GroupShape, max_bytes: int) -> None:
        """Collective: connects the ranks of the same place on all nodes."""
        rank = dist.get_rank(group)
        node, place = divmod(rank, topology.ranks_per_node)
        most = min(max_bytes, topology.piece_bytes)
        part_bytes = -(-num_vectors(most) // topology.ranks_per_node) * 16
        self.layout = LinkMemory(nodes=topology.nodes, part_bytes=-(-part_bytes // 4096) * 4096)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._file = os.memfd_create("weft-host-link")
        os.ftruncate(self._file, self.layout.num_bytes)
        self._map = mmap.mmap(self._file, self.layout.num_bytes)
        self._host = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._driver = driver()
        self.record = self._register()
        self._connect(group, topology, node, place)

    def _register(self) -> HostLinkRecord:
        flags = self._driver.CU_MEMHOSTREGISTER_PORTABLE | self._driver.CU_MEMHOSTREGISTER_DEVICEMAP
        size = self.layout.num_bytes
        checked(self._driver.cuMemHostRegister(self._host, size, flags), "pinning the mailboxes")
        pointer = self._driver.cuMemHostGetDevicePointer(self._host, 0)
        base = int(checked(pointer, "mapping the mailboxes"))
        return record_at(base, self.layout)

    def _connect(
        self, group: dist.ProcessGroup, topology: GroupShape, node: int, place: int
    ) -> None:
        """Listen, tell everybody where, and hand the connected sockets to the proxies."""
        listener = socket.create_server(("", 0), backlog=64)
        listener.settimeout(CONNECT_S)
        token = secrets.token_bytes(16)
        mine = (host_identity(), _address(), listener.getsockname()[1], token, num_cores())
        ranks = gather(group, mine)
        self._lanes = lanes_for([rank[0] for rank in ranks], [rank[4] for rank in ranks], topology)
        others = [n for n in range(topology.nodes) if n != node]
        outgoing: dict[tuple[int, int], socket.socket] = {}
        incoming: dict[tuple[int, int], socket.socket] = {}
        for other, lane in itertools.product(others, range(self._lanes)):
            host, address, port, key, _ = ranks[other * topology.ranks_per_node + place]
            address = "127.0.0.1" if host == mine[0] else address
            link = socket.create_connection((address, port), timeout=CONNECT_S)
            link.sendall(GREETING.pack(key, node, lane))
            outgoing[other, lane] = link
        while len(incoming) < len(others) * self._lanes:
            connection, _ = listener.accept()
            connection.settimeout(CONNECT_S)
            greeting = connection.recv(GREETING.size, socket.MSG_WAITALL)
            if greeting[:16] == token:
                _, other, lane = GREETING.unpack(greeting)
                incoming[other, lane] = connection
        listener.close()
        self._start_all(outgoing, incoming)

    def _start_all(
        self,
        outgoing: dict[tuple[int, int], socket.socket],
        incoming: dict[tuple[int, int], socket.socket],
    ) -> None:
        for lane in range(self._lanes):
            self._start("send", lane, {n: s for (n, at), s in outgoing.items() if at == lane})
        for (node, lane), connection in incoming.items():
            self._start("receive", lane, {node: connection})
        for connection in (*outgoing.values(), *incoming.values()):
            connection.close()

    def _start(self, role: str, lane: int, sockets: dict[int, socket.socket]) -> None:
        task = {
            "role": role,
            "memory": self._file,
            "nodes": self.layout.nodes,
            "part_bytes": self.layout.part_bytes,
            "sockets": {str(node): link.fileno() for node, link in sockets.items()},
            "lane": {"index": lane, "count": self._lanes},
            "parent": os.getpid(),
        }
        files = (self._file, *(link.fileno() for link in sockets.values()))
        self._processes.append(
            subprocess.Popen(  # noqa: S603  our own module
                [sys.executable, "-m", "weft.kernels.host_proxy", json.dumps(task)],
                pass_fds=files,
                stdin=subprocess.DEVNULL,
            )
        )

    def close(self, *, lost: bool) -> None:
        """Stop the proxies and release the pinned memory, also where a rank is lost."""
        del lost
        self._map[self.layout.stop] = 1
        for process in self._processes:
            try:
                process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._host:
            self._driver.cuMemHostUnregister(self._host)
            self._host = 0
            os.close(self._file)


def lanes_for(hosts: Sequence[str], cores: Sequence[int], topology: GroupShape) -> int:
    """Lanes between two ranks: as many as leave a core for each proxy and rank, 1 to MAX_LANES.

    hosts, cores: of every rank; the answer is the same on all of them.
    """
    most = MAX_LANES
    for host, available in zip(hosts, cores, strict=True):
        ranks = hosts.count(host)
        most = min(most, (available - ranks) // (2 * ranks * (topology.nodes - 1)))
    return max(1, most)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _address() -> str:
    """The address by which other hosts reach this one."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"  # no name service: right for nodes that share this host
