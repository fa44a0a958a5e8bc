"""The proxy processes of the TCP transport, with the kernel played by the test."""

from __future__ import annotations

import json
import mmap
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from weft.kernels.host_proxy import Lane, Layout, part_size, ready_run

LAYOUT = Layout(nodes=2, part_bytes=256 << 10)


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
        """Announce the shape, then complete the chunks in any order."""
        parity, part = call & 1, len(data) // 16
        struct.pack_into("<III", self.memory, LAYOUT.shape + 16 * parity, part, chunk, call)
        order = list(range(-(-part // chunk)))
        rng.shuffle(order)
        begin = LAYOUT.outbox + parity * LAYOUT.part_bytes
        for index in order:
            piece = data[index * chunk * 16 : (index + 1) * chunk * 16]
            at = begin + index * chunk * 16
            self.memory[at : at + len(piece)] = piece
            self.memory[LAYOUT.out_flags + parity * LAYOUT.max_chunks + index] = 1

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


@pytest.fixture(params=[1, 2])
def nodes(request: pytest.FixtureRequest) -> Iterator[list[Node]]:
    """Two nodes with running proxies; the parameter is the number of lanes."""
    pair, processes = [Node(0), Node(1)], []
    for lane in range(request.param):
        links = [connected(), connected()]  # [i]: from node i
        for i in range(2):
            for role, link in (("send", links[i][0]), ("receive", links[1 - i][1])):
                processes.append(start(pair[i], role, link, Lane(index=lane, count=request.param)))
        for link in (*links[0], *links[1]):
            link.close()
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


def test_parts_arrive_whole_whatever_the_order_of_their_chunks(nodes: list[Node]) -> None:
    rng = random.Random(5)
    for call in range(1, 25):
        chunk = rng.choice((32, 64, 256))
        part = rng.choice((1, chunk - 1, chunk, chunk + 1, rng.randint(1, 16000)))
        data = [rng.randbytes(part * 16) for _ in nodes]
        for node in nodes:
            node.push(call, data[node.node], chunk, rng)
        for node in nodes:
            assert node.pull(call, part * 16, chunk) == data[1 - node.node]


def test_a_run_stops_at_the_first_gap() -> None:
    flags = memoryview(bytearray([1, 1, 0, 1, 1]))
    assert [ready_run(flags, first, 5) for first in range(5)] == [2, 1, 0, 2, 1]


def test_the_last_chunk_may_be_short() -> None:
    assert part_size(0, 2, (100, 64)) == 100 * 16
    assert part_size(0, 1, (100, 64)) == 64 * 16
    assert part_size(1, 1, (100, 64)) == 36 * 16


def test_the_parts_of_the_layout_do_not_overlap() -> None:
    marks = (LAYOUT.shape + 32, LAYOUT.out_flags, LAYOUT.in_flags, LAYOUT.outbox, LAYOUT.inbox)
    assert list(marks) == sorted(marks)
    assert LAYOUT.outbox % 4096 == 0


def test_a_rank_that_waits_itself_says_that_it_is_there(nodes: list[Node]) -> None:
    struct.pack_into("<III", nodes[0].memory, LAYOUT.shape + 16, 64, 32, 1)  # epoch 1, no chunks
    end = time.monotonic() + 10
    while nodes[1].memory[LAYOUT.entered] != 1:  # of node 0
        assert time.monotonic() < end
        time.sleep(0.01)
