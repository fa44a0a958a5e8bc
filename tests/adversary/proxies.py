"""The proxy processes beside the GPUs by their own code, each access to memory a step."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from adversary.actors import Actor, dismiss, hire, module_of
from adversary.machine import Patch
from weft.kernels import host_proxy
from weft.kernels.host_link import HostLinkRecord, record_at

PIPE_BYTES = 300


class SmallMemory(host_proxy.LinkMemory):
    """Flags of a few chunks, so that a case's memory is small."""

    out_flags = 192

    @property
    def max_chunks(self) -> int:
        return 64


class Memory:
    """A process's view of shared memory. Stores are seen in their order (x86-64), a copy of
    several bytes piece by piece in any order, and others go on between any two accesses.
    """

    def __init__(self, view: memoryview, proxy: Process) -> None:
        self._view, self._proxy = view, proxy

    def __len__(self) -> int:
        return len(self._view)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return Memory(self._view[key], self._proxy)
        self._proxy.access()
        return self._view[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, slice):
            self._proxy.access()
            self._view[key] = value
            return
        data, target = bytes(value), self._view[key]
        assert len(data) == len(target)
        for start, stop in self._proxy.pieces(len(data)):
            self._proxy.access()
            target[start:stop] = data[start:stop]

    def __bytes__(self) -> bytes:
        data = bytearray(len(self._view))
        for start, stop in self._proxy.pieces(len(data)):
            self._proxy.access()
            data[start:stop] = self._view[start:stop]
        return bytes(data)

    def cast(self, code: Any) -> Memory:
        return Memory(self._view.cast(code), self._proxy)


class Pipe:
    """A TCP connection: bytes in their order, as late and in as small pieces as it likes."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._bytes = rng, bytearray()
        self.sender: Process | None = None
        self.receiver: Process | None = None

    def sendmsg(self, parts: list[Any]) -> int:
        return self.send(b"".join(map(bytes, parts)))

    def send(self, data: Any) -> int:
        assert self.sender is not None
        while len(self._bytes) >= PIPE_BYTES:
            self.sender.actor.pause(moved=False)
        most = min(len(data), PIPE_BYTES - len(self._bytes))
        count = most if self._rng.random() < 0.5 else self._rng.randint(1, most)
        self._bytes += bytes(data[:count])
        self.sender.access()
        return count

    def recv_into(self, target: Any, _size: int, _flags: int) -> int:
        assert self.receiver is not None
        if not self._bytes or self._rng.random() < 0.2:
            self.receiver.actor.moved |= bool(self._bytes)
            raise BlockingIOError
        most = min(len(self._bytes), len(target))
        count = most if self._rng.random() < 0.5 else self._rng.randint(1, most)
        target[:count] = bytes(self._bytes[:count])
        del self._bytes[:count]
        return count


class Process:
    """One proxy."""

    def __init__(
        self, module: ModuleType, layout: SmallMemory, memory: memoryview, rng: random.Random
    ):
        self._rng = rng
        self.preempt = rng.choice((0.05, 0.5, 1.0))
        self.actor: Actor
        self._looks = False
        look = self._look

        class Proxy(module.Proxy):  # type: ignore[misc, name-defined]
            def until(self, ready: Callable[[], bool], end: float = host_proxy.FOREVER) -> bool:
                return bool(super().until(lambda: look(ready), end))

        self.proxy = Proxy(layout, Memory(memory, self), 0, lambda _: None)

    def _look(self, ready: Callable[[], bool]) -> bool:
        self._looks = True
        self._looks = not ready()
        if self._looks:
            self.actor.pause(moved=False)
        return not self._looks

    def access(self) -> None:
        if self._looks:  # at something that may never come: one step for all of a look
            return
        self.actor.moved = True
        if self._rng.random() < self.preempt:
            self.actor.pause()

    def pieces(self, size: int) -> list[tuple[int, int]]:
        """[0, size) in pieces of 4 bytes' bounds, in any order."""
        cuts = sorted({0, size, *(self._rng.randrange(0, size + 1, 4) for _ in range(2))})
        found = list(pairwise(cuts))
        self._rng.shuffle(found)
        return found


class Proxies:
    """The host memory of every rank and all processes that move it."""

    def __init__(self, world: Any, patches: tuple[Patch, ...], seed: int) -> None:
        shape = world.shape
        self._rng = random.Random(f"proxies {seed}")
        self._now = 0.0
        self._module = _module(patches)
        self._module.time = SimpleNamespace(monotonic=self._monotonic)
        self._module.MAX_SEND_BYTES = self._rng.choice((16, 64, 4096))
        self._module.STAGING_BYTES = self._rng.choice((20, 52, 512))
        self.layout = SmallMemory(nodes=shape.nodes, part_bytes=world.part_bytes)
        self.memory = [world.arena.take(self.layout.num_bytes) for _ in range(shape.ranks)]
        for first in self.memory:
            world.arena.view(first + self.layout.entered, shape.nodes)[:] = world.first_epoch
        self._base, self._arena, self._shape = world.arena.address, world.arena.bytes, shape
        self.actors: list[Actor] = []
        self.ranks: list[int] = []  # of every actor
        self._start(lanes=self._rng.choice((1, 2)) if shape.ranks * shape.nodes <= 12 else 1)

    def record(self, rank: int) -> HostLinkRecord:
        return record_at(self._base + self.memory[rank], self.layout)

    def step(self, which: int) -> int:
        """What the machine calls: one step of one process; 1 where it moved something."""
        return int(self.actors[which].step())

    def close(self) -> BaseException | None:
        """End all; the error of one, if there is any."""
        errors = [actor.error for actor in self.actors if actor.error is not None]
        dismiss(self.actors)
        return errors[0] if errors else None

    def unrest(self) -> str | None:
        """Flags that were not put back, or None."""
        first, last = self.layout.out_flags, self.layout.outbox
        for rank, memory in enumerate(self.memory):
            if self._arena[memory + first : memory + last].any():
                return f"rank {rank}: a flag of a chunk is not put back"
        return None

    def _start(self, lanes: int) -> None:
        shape, local = self._shape, self._shape.local
        for lane in range(lanes):
            share = host_proxy.Lane(index=lane, count=lanes)
            pipes = {
                (rank, node): Pipe(self._rng)
                for rank in range(shape.ranks)
                for node in range(shape.nodes)
                if node != rank // local
            }
            for rank in range(shape.ranks):
                node, place = divmod(rank, local)
                links = [pipe for (sender, _), pipe in pipes.items() if sender == rank]
                sender = self._process(rank, "send_calls", links, share)
                for link in links:
                    link.sender = sender
                for other in range(shape.nodes):
                    if other != node:
                        pipe = pipes[other * local + place, node]
                        pipe.receiver = self._process(rank, "receive_calls", other, pipe)

    def _process(self, rank: int, role: str, *arguments: Any) -> Process:
        first = self.memory[rank]
        view = memoryview(self._arena)[first : first + self.layout.num_bytes]
        process = Process(self._module, self.layout, view, self._rng)
        run = getattr(self._module, role)
        process.actor = hire(lambda: run(process.proxy, *arguments))
        self.actors.append(process.actor)
        self.ranks.append(rank)
        return process

    def _monotonic(self) -> float:
        self._now += self._rng.choice((0.0, 0.02, 0.06))
        return self._now


@cache
def _module(patches: tuple[Patch, ...]) -> ModuleType:
    module = module_of(Path(host_proxy.__file__), host_proxy.__name__, patches)
    module.os = SimpleNamespace(getppid=lambda: 0)
    module.SPIN_S = -1.0
    module.MIN_CHUNK_VECTORS = 1  # as kMinChunkVectors of host/ptx.cuh
    return module
