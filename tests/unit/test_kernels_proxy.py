"""The proxy processes of the TCP transport, with the kernel played by the test."""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from weft.kernels.host_proxy import (
    MIN_CHUNK_VECTORS,
    PART_BITS,
    Lane,
    LinkMemory,
    part_size,
    ready_run,
    unpack_shape,
)

LAYOUT = LinkMemory(nodes=2, part_bytes=256 << 10)


def pack_shape(part: int, chunk: int, epoch: int) -> int:
    """The word by which a kernel announces a call; part, chunk: in vectors."""
    return epoch << 32 | chunk // MIN_CHUNK_VECTORS << PART_BITS | part


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


class Node:
    """The memory of one node's rank, with what its kernel does to it."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.file = os.memfd_create("weft-test")
        os.ftruncate(self.file, LAYOUT.num_bytes)
        self.memory = memoryview(mmap.mmap(self.file, LAYOUT.num_bytes))

    def push(self, call: int, data: bytes, chunk: int, rng: random.Random) -> None:
        """Announce the call, then complete the chunks in any order."""
        parity, part = call & 1, len(data) // 16
        self.announce(call, part, chunk)
        order = list(range(-(-part // chunk)))
        rng.shuffle(order)
        begin = LAYOUT.outbox + parity * LAYOUT.part_bytes
        for index in order:
            piece = data[index * chunk * 16 : (index + 1) * chunk * 16]
            at = begin + index * chunk * 16
            self.memory[at : at + len(piece)] = piece
            self.memory[LAYOUT.out_flags + parity * LAYOUT.max_chunks + index] = 1

    def announce(self, call: int, part: int, chunk: int) -> None:
        words = self.memory[LAYOUT.shape : LAYOUT.shape + 16].cast("Q")
        words[call & 1] = pack_shape(part, chunk, call)

    def pull(self, call: int, size: int, chunk: int) -> bytes:
        """Wait for all chunks of the other node and put the flags back."""
        box = (call & 1) * LAYOUT.nodes + 1 - self.node
        start, count = LAYOUT.in_flags + box * LAYOUT.max_chunks, -(-size // 16 // chunk)
        end = time.monotonic() + 20
        while bytes(self.memory[start : start + count]).find(0) >= 0:
            assert time.monotonic() < end
            time.sleep(0.0005)
        self.memory[start : start + count] = bytes(count)
        at = LAYOUT.inbox + box * LAYOUT.part_bytes
        return bytes(self.memory[at : at + size])


class Nodes(list[Node]):
    """Two nodes with running proxies."""

    def __init__(self, lanes: int) -> None:
        super().__init__([Node(0), Node(1)])
        self.processes: dict[tuple[str, int, int], subprocess.Popen[bytes]] = {}
        for lane in range(lanes):
            links = [connected(), connected()]  # [i]: from node i
            for i in range(2):
                for role, link in (("send", links[i][0]), ("receive", links[1 - i][1])):
                    share = Lane(index=lane, count=lanes)
                    self.processes[role, i, lane] = start(self[i], role, link, share)
            for link in (*links[0], *links[1]):
                link.close()

    def exchange(self, call: int, part: int, chunk: int, rng: random.Random) -> None:
        data = [rng.randbytes(part * 16) for _ in self]
        for node in self:
            node.push(call, data[node.node], chunk, rng)
        for node in self:
            assert node.pull(call, part * 16, chunk) == data[1 - node.node]


@pytest.fixture(params=[1, 2])
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """The parameter is the number of lanes."""
    pair = Nodes(request.param)
    processes = pair.processes.values()
    yield pair
    for node in pair:
        node.memory[LAYOUT.stop] = 1
    assert [process.wait(timeout=5) for process in processes] == [0] * len(processes)


def start(node: Node, role: str, link: socket.socket, lane: Lane) -> subprocess.Popen[bytes]:
    task = {
        "role": role,
        "memory": node.file,
        "nodes": LAYOUT.nodes,
        "part_bytes": LAYOUT.part_bytes,
        "sockets": {str(1 - node.node): link.fileno()},
        "lane": {"index": lane.index, "count": lane.count},
        "parent": os.getpid(),
    }
    command = [sys.executable, "-m", "weft.kernels.host_proxy", json.dumps(task)]
    return subprocess.Popen(command, pass_fds=(node.file, link.fileno()))


def test_parts_arrive_whole_whatever_the_order_of_their_chunks(nodes: Nodes) -> None:
    rng = random.Random(5)
    for call in range(1, 60):
        chunk = rng.choice((32, 64, 256))
        part = rng.choice((1, chunk - 1, chunk, chunk + 1, rng.randint(1, 16000)))
        nodes.exchange(call, part, chunk, rng)
        if call % 20 == 0:
            time.sleep(0.03)  # the proxies pause


@pytest.mark.parametrize("missed", [1, 2, 3, 4])
@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_a_lane_may_miss_calls_of_which_it_has_no_share(nodes: Nodes, missed: int) -> None:
    rng = random.Random(missed)
    nodes.exchange(1, 4 * 32, 32, rng)
    idle = [nodes.processes["send", i, 0] for i in range(2)]
    for process in idle:
        process.send_signal(signal.SIGSTOP)
    for call in range(2, 2 + missed):
        nodes.exchange(call, 32, 32, rng)  # one chunk, of the other lane
    for process in idle:
        process.send_signal(signal.SIGCONT)
    time.sleep(0.05)
    for call in range(2 + missed, 6 + missed):
        nodes.exchange(call, 4 * 32, 32, rng)


@pytest.mark.parametrize("shape", [(1, 32, 1), (131072, 512, 2**32 - 2), (2**26 - 1, 1024, 7)])
def test_a_shape_fits_its_word(shape: tuple[int, int, int]) -> None:
    assert unpack_shape(pack_shape(*shape)) == shape
    assert pack_shape(*shape) < 2**64


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("nodes", [1], indirect=True)
def test_proxies_rest_while_nothing_moves(nodes: Nodes) -> None:
    nodes.exchange(1, 64, 32, random.Random(1))
    time.sleep(0.1)
    processes = nodes.processes.values()
    before = [cpu_seconds(process) for process in processes]
    time.sleep(0.6)
    used = [cpu_seconds(process) - s for process, s in zip(processes, before, strict=True)]
    assert max(used) < 0.15
    nodes.exchange(2, 64, 32, random.Random(2))


def test_a_run_stops_at_the_first_gap() -> None:
    flags = memoryview(bytearray([1, 1, 0, 1, 1]))
    assert [ready_run(flags, first, 5) for first in range(5)] == [2, 1, 0, 2, 1]


def test_the_last_chunk_may_be_short() -> None:
    assert part_size(0, 2, (100, 64)) == 100 * 16
    assert part_size(0, 1, (100, 64)) == 64 * 16
    assert part_size(1, 1, (100, 64)) == 36 * 16


def test_the_parts_of_the_layout_do_not_overlap() -> None:
    marks = (LAYOUT.shape + 16, LAYOUT.out_flags, LAYOUT.in_flags, LAYOUT.outbox, LAYOUT.inbox)
    assert list(marks) == sorted(marks)
    assert LAYOUT.outbox % 4096 == 0


def test_a_rank_that_waits_itself_says_that_it_is_there(nodes: Nodes) -> None:
    nodes[0].announce(1, 64, 32)  # and no chunk follows
    end = time.monotonic() + 10
    while nodes[1].memory[LAYOUT.entered] != 1:  # of node 0
        assert time.monotonic() < end
        time.sleep(0.01)
