"""The CPU's all-reduce by its own code: ranks that stop at every access to shared memory.

The memory is that of x86-64: a rank's stores wait in a queue of its own and are seen in their
order, as late as the adversary likes; a copy's words are seen in any order. A message between nodes
is read, travels and arrives piece by piece; it is matched by peer and tag, in order.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from adversary.actors import Actor, dismiss, hire, module_of
from adversary.machine import Patch
from allreduce_reference import all_reduce_reference
from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.errors import MismatchError
from weft.allreduce.program import Topology
from weft.comm import program_runner, shared_memory, sockets
from weft.comm.program_runner import DTYPES
from weft.errors import CommunicationError, LostRankError

TIMEOUT_S = 1.0
BOUND_S = 6 * TIMEOUT_S  # a rank may wait for one that waits itself
MOST_TURNS = 200_000
EPOCHS = (0, 2**31 - 2, 2**32 - 2, 2**40)
TOPOLOGIES = ((1, 2), (1, 3), (1, 4), (2, 2), (3, 1), (4, 1), (2, 1))


class Wrong(AssertionError):
    """Something happened that must not."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Some calls of a group; equal cases run equally."""

    topology: Topology
    calls: tuple[tuple[str, int, torch.dtype], ...]  # algorithm, elements, type
    seed: int
    first_epoch: int = 0
    lost_rank: int | None = None
    lost_after: int = 0  # steps
    frozen: bool = False  # it stands still, and its process is there
    leaps: bool = False  # the clock goes wild
    odd_rank: int | None = None  # it passes other elements in the last call


def draw(seed: int, lose: bool | None = None) -> Case:
    """A random case."""
    rng = random.Random(f"programs {seed}")
    nodes, local = rng.choice(TOPOLOGIES)
    topology = Topology(nodes=nodes, gpus_per_node=local)
    calls = tuple(
        (rng.choice(tuple(PROGRAMS)), rng.choice((0, 1, 3, 17, 64, 200)), rng.choice(DTYPES))
        for _ in range(rng.randint(1, 5))
    )
    lost = rng.random() < 0.25 if lose is None else lose
    other = rng.random()
    return Case(
        topology=topology,
        calls=calls,
        seed=seed,
        first_epoch=rng.choice(EPOCHS),
        lost_rank=rng.randrange(topology.ranks) if lost else None,
        lost_after=rng.randint(1, 120),
        frozen=rng.random() < 0.5,
        leaps=not lost and other < 0.1,
        odd_rank=rng.randrange(topology.ranks) if not lost and other > 0.85 else None,
    )


class Fields:
    """The 64-bit words of a segment, as one rank sees them."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return np.array([self[i] for i in range(key.start, key.stop)])
        self._rank.step()
        return int(self._rank.load(key * 8, 8).view(np.int64)[0])

    def __setitem__(self, key: int, value: int) -> None:
        self._rank.step()
        self._rank.store(key * 8, np.array([value], dtype=np.int64).view(np.uint8))


class Bytes(torch.Tensor):
    """The outboxes of a segment, as one rank sees them: torch's own views, our loads and stores."""

    owner: Rank

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in (torch.Tensor.__getitem__, torch.Tensor.view):
                found = func(*args, **kwargs).as_subclass(cls)
                found.owner = args[0].owner
                return found
            if func is torch.Tensor.copy_ and isinstance(args[0], Bytes):
                return args[0].owner.publish(args[0], args[1])
            plain = [a.owner.fetch(a) if isinstance(a, Bytes) else a for a in args]
            return func(*plain, **kwargs)


class Rank:
    """One rank: its thread, and its stores that nobody else has seen yet."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.memory = world.memory[world.case.topology.node_of(number)]
        self.queue: deque[tuple[int, np.ndarray[Any, Any], int]] = deque()
        self.steps, self.alive, self.gone = 0, True, False
        self.results: list[torch.Tensor] = []
        self.error: CommunicationError | MismatchError | None = None
        self.waits = False
        node = world.case.topology.node_members(number)
        self.segment = world.code.segment(self, len(node), number - node.start, list(node))
        self.actor: Actor = hire(self._run)

    def step(self, *, waits: bool = False) -> None:
        """Others may go on here. waits: nothing comes of this turn until somebody else moves."""
        self.steps += 1
        self.waits = waits
        if waits or self.world.rng.random() < self.world.preempt:
            self.actor.pause(moved=not waits)

    def store(self, offset: int, data: np.ndarray[Any, Any], epoch: int = -1) -> None:
        self.queue.append((offset, data.copy(), epoch))
        self.world.moves += 1

    def load(self, offset: int, size: int) -> np.ndarray[Any, Any]:
        found = self.memory[offset : offset + size].copy()
        for first, data, _ in self.queue:
            begin, end = max(first, offset), min(first + len(data), offset + size)
            if begin < end:
                found[begin - offset : end - offset] = data[begin - first : end - first]
        return found

    def publish(self, target: Bytes, source: torch.Tensor) -> Bytes:
        data = source.contiguous().view(torch.uint8).numpy()
        first = target.storage_offset() * target.element_size()
        pieces = self.world.pieces(len(data))
        self.world.rng.shuffle(pieces)
        for start, stop in pieces:
            self.step()
            self.store(first + start, data[start:stop], self.segment.epoch)
        return target

    def fetch(self, source: Bytes) -> torch.Tensor:
        size = source.element_size()
        first, found = source.storage_offset() * size, np.empty(source.numel() * size, np.uint8)
        for start, stop in self.world.pieces(len(found)):
            self.step()
            found[start:stop] = self.load(first + start, stop - start)
        return torch.from_numpy(found).view(source.dtype)

    def deliver(self) -> None:
        """The oldest of its stores becomes visible."""
        offset, data, epoch = self.queue.popleft()
        if epoch >= 0:
            self.world.check_unused(self, epoch)
        self.memory[offset : offset + len(data)] = data

    def _run(self) -> None:
        case, code, topology = self.world.case, self.world.code, self.world.case.topology
        _turn.rank = self
        link = None
        if topology.nodes > 1:
            link = code.sockets.SocketLink(self, self.number, range(topology.ranks), TIMEOUT_S)
        runner = code.runner.ProgramRunner(topology, self.number, self.segment, link)
        try:
            for index, (algorithm, _, _) in enumerate(case.calls):
                mine = self.world.inputs[index][self.number].clone()
                if index + 1 == len(case.calls) and self.number == case.odd_rank:
                    mine = torch.cat((mine, mine[:1], torch.ones(1).to(mine.dtype)))
                runner.all_reduce(mine, algorithm)
                self.results.append(mine)
        except (CommunicationError, MismatchError) as error:
            self.error = error


class Work:
    """A message as one of its two ranks sees it."""

    def __init__(self, rank: Rank, peer: int, tensor: torch.Tensor) -> None:
        self.rank, self.peer, self.done = rank, peer, False
        self.bytes = tensor.view(torch.uint8).numpy()
        self.moved = 0
        rank.world.moves += 1

    def wait(self, timeout: Any) -> None:
        world = self.rank.world
        end = world.now + timeout.total_seconds()
        while not self.done:
            if world.now > end:
                raise RuntimeError("timed out")
            if world.ranks[self.peer].gone and world.rng.random() < 0.1:
                raise RuntimeError("connection closed by peer")
            self.rank.step(waits=True)


class Channel:
    """Messages of one tag from one rank to another: read, on their way, written, in order."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.sends: deque[Work] = deque()
        self.receives: deque[Work] = deque()
        self._travelling: deque[np.ndarray[Any, Any]] = deque()

    def move(self) -> bool:
        """One piece, somewhere; False where nothing can move."""
        choices: list[Callable[[], None]] = []
        if self.sends:
            choices.append(self._read)
        if self.receives and self._travelling:
            choices.append(self._write)
        if choices:
            self._rng.choice(choices)()
        return bool(choices)

    def _part(self, work: Work) -> slice:
        start = work.moved
        left = len(work.bytes) - start
        work.moved += left if self._rng.random() < 0.5 else self._rng.randint(0, left)
        work.done = work.moved == len(work.bytes)
        return slice(start, work.moved)

    def _read(self) -> None:
        work = self.sends[0]
        if work.moved == 0:
            self._text = np.empty_like(work.bytes)
        part = self._part(work)
        self._text[part] = work.bytes[part]
        if work.done:
            self._travelling.append(self._text)
            self.sends.popleft()

    def _write(self) -> None:
        work = self.receives[0]
        text = self._travelling[0]
        if len(text) != len(work.bytes):
            raise Wrong(f"a message of {len(text)} bytes for one of {len(work.bytes)}")
        part = self._part(work)
        work.bytes[part] = text[part]
        if work.done:
            self._travelling.popleft()
            self.receives.popleft()


class World:
    """The ranks of a case, their memory, messages and time, and who goes on."""

    def __init__(self, case: Case, patches: tuple[Patch, ...]) -> None:
        self.case, self.code = case, code_of(patches)
        self.rng, self.now = random.Random(case.seed), 0.0
        self.preempt = self.rng.choice((0.1, 0.5, 1.0))
        self.lazy = self.rng.choice((0.1, 0.5, 0.9))  # how long stores wait
        topology = case.topology
        size = self.code.shared.segment_bytes(topology.gpus_per_node)
        self.memory = [np.zeros(size, np.uint8) for _ in range(topology.nodes)]
        self.inputs = [self._tensors(count, dtype) for _, count, dtype in case.calls]
        self.channels: dict[tuple[int, int, int], Channel] = {}
        self.moves = 0
        self.ranks = [Rank(self, number) for number in range(topology.ranks)]

    def run(self) -> None:
        """Until every rank has ended."""
        try:
            for _ in range(MOST_TURNS):
                if all(rank.actor.done or rank.gone for rank in self.ranks):
                    return
                self._turn()
            raise Wrong("no end")
        finally:
            dismiss([rank.actor for rank in self.ranks])

    def pieces(self, size: int) -> list[tuple[int, int]]:
        """[0, size) in pieces."""
        cuts = sorted({0, size, *(self.rng.randrange(0, size + 1, 2) for _ in range(2))})
        return list(pairwise(cuts))

    def check_unused(self, writer: Rank, epoch: int) -> None:
        """Nobody may still read what a rank published two calls before ``epoch``."""
        for rank in self.ranks:
            near = rank.memory is writer.memory and not rank.gone and not rank.actor.done
            if near and rank.segment.epoch < epoch - 1:
                raise Wrong(
                    f"rank {writer.number} overwrites in call {epoch} what rank {rank.number} reads "
                    f"in call {rank.segment.epoch}"
                )

    def channel(self, source: int, target: int, tag: int) -> Channel:
        return self.channels.setdefault((source, target, tag), Channel(self.rng))

    def _tensors(self, count: int, dtype: torch.dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(self.rng.randrange(2**31))
        ranks = range(self.case.topology.ranks)
        if dtype.is_floating_point:
            return [torch.randn(count, generator=generator).to(dtype) for _ in ranks]
        return [torch.randint(-99, 99, (count,), generator=generator).to(dtype) for _ in ranks]

    def _turn(self) -> None:
        if self.case.leaps and self.rng.random() < 0.01:
            self.now += self.rng.choice((0.1, TIMEOUT_S, 2 * TIMEOUT_S))
        if self.rng.random() >= self.lazy and self._deliver():
            return
        ready = [r for r in self.ranks if not (r.actor.done or r.gone)]
        eager = [rank for rank in ready if not rank.waits or self.rng.random() < 0.1]
        if eager and self.rng.random() < 0.9:
            self._go_on(self.rng.choice(eager))
        elif not self._deliver():
            self._wait(ready)

    def _wait(self, ready: list[Rank]) -> None:
        """All look some times more; where nobody finds anything, time passes."""
        moves = self.moves
        disturbed = self.case.lost_rank is not None or self.case.leaps
        for rank in ready * (20 if disturbed else 100):
            self._go_on(rank)
            if self.moves != moves:
                return
        if not disturbed:
            raise Wrong("nobody can go on")
        if not self.case.leaps and self.now > BOUND_S:
            raise Wrong(f"nobody can go on, and after {BOUND_S} s nobody has an error")
        self.now += self.rng.choice((0.02, 0.1))

    def _go_on(self, rank: Rank) -> None:
        if rank.gone or rank.actor.done:
            return
        if rank.number == self.case.lost_rank and rank.steps >= self.case.lost_after:
            self._lose(rank)
            return
        rank.actor.step()
        self.moves += rank.actor.done
        if rank.actor.error is not None:
            raise rank.actor.error

    def _lose(self, rank: Rank) -> None:
        rank.gone = True
        rank.alive = self.case.frozen
        for _ in range(self.rng.randint(0, len(rank.queue))):
            rank.queue.pop()  # it had not come so far

    def _deliver(self) -> bool:
        """A store or a piece of a message goes on; False where there is none."""
        self.moves += 1
        full = [rank for rank in self.ranks if rank.queue]
        channels = list(self.channels.values())
        self.rng.shuffle(channels)
        if full and (not channels or self.rng.random() < 0.5):
            self.rng.choice(full).deliver()
            return True
        if any(channel.move() for channel in channels):
            return True
        if full:
            self.rng.choice(full).deliver()
        else:
            self.moves -= 1
        return bool(full)


_turn = threading.local()
"""The rank of a thread."""


@dataclass(frozen=True)
class Code:
    """The shipped modules, with faults planted or not."""

    shared: ModuleType
    sockets: ModuleType
    runner: ModuleType
    segment: Callable[[Rank, int, int, list[int]], Any]


@cache
def code_of(patches: tuple[Patch, ...]) -> Code:
    """The modules with another clock, memory and sockets."""
    shared, link, runner = (
        module_of(Path(module.__file__ or ""), module.__name__, patches)
        for module in (shared_memory, sockets, program_runner)
    )
    shared._SPINS_BETWEEN_CHECKS = 1
    shared.OUTBOX_BYTES = runner.OUTBOX_BYTES = 4096 + 2048
    runner.Header = shared.Header
    shared.os = SimpleNamespace(sched_yield=lambda: _turn.rank.step(waits=True))
    shared.time = SimpleNamespace(
        monotonic=lambda: _turn.rank.world.now, sleep=lambda _: _turn.rank.step(waits=True)
    )

    class Segment(shared.Segment):  # type: ignore[misc, name-defined]
        def __init__(self, rank: Rank, size: int, place: int, names: Sequence[int]) -> None:
            self.size, self.rank, self.names, self.timeout_s = size, place, names, TIMEOUT_S
            self.owner, self.epoch = rank, rank.world.case.first_epoch
            self._fields = Fields(rank)
            self._bytes = torch.from_numpy(rank.memory).as_subclass(Bytes)
            self._bytes.owner = rank

        def _is_running(self, rank: int) -> bool:
            return self.owner.world.ranks[self.names[rank]].alive

    link.dist = SimpleNamespace(irecv=_irecv, isend=_isend)
    return Code(shared, link, runner, Segment)


def _irecv(tensor: torch.Tensor, *, group: Rank, group_src: int, tag: int) -> Work:
    work = Work(group, group_src, tensor)
    group.world.channel(group_src, group.number, tag).receives.append(work)
    return work


def _isend(tensor: torch.Tensor, *, group: Rank, group_dst: int, tag: int) -> Work:
    work = Work(group, group_dst, tensor)
    group.world.channel(group.number, group_dst, tag).sends.append(work)
    return work


def check(case: Case, patches: tuple[Patch, ...] = ()) -> None:
    """Run one case; Wrong where something happens that must not."""
    world = World(case, patches)
    try:
        world.run()
        problem = next(filter(None, (_problem(world, rank) for rank in world.ranks)), None)
    except Wrong as error:
        problem = str(error)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        raise Wrong(f"{problem}: {case}")


def _problem(world: World, rank: Rank) -> str | None:
    """What is wrong with the end of a rank, or None."""
    case = world.case
    for index, found in enumerate(rank.results):
        if index + 1 == len(case.calls) and case.odd_rank is not None:
            return f"rank {rank.number}: no error where one rank passes other elements"
        algorithm, count, dtype = case.calls[index]
        if _bits(found) != _expected(world, index)[rank.number]:
            return f"rank {rank.number}: wrong sum of call {index} ({algorithm}, {count} {dtype})"
    if rank.gone or len(rank.results) == len(case.calls):
        return None
    return _wrong_error(case, rank)


def _wrong_error(case: Case, rank: Rank) -> str | None:
    error, says = rank.error, f"rank {rank.number} says {rank.error!r}"
    if case.odd_rank is not None:
        late = len(rank.results) + 1 < len(case.calls)
        return says if late or not isinstance(error, MismatchError) else None
    if case.leaps or (case.lost_rank is not None and case.topology.nodes > 1):
        return None if isinstance(error, CommunicationError) else says
    named = isinstance(error, LostRankError) and f"lost rank {case.lost_rank} in" in str(error)
    return None if named else says


def _expected(world: World, index: int) -> list[bytes]:
    algorithm, _, dtype = world.case.calls[index]
    stored = [_stored(tensor) for tensor in world.inputs[index]]
    name = str(dtype).removeprefix("torch.")
    sums = all_reduce_reference(algorithm, world.case.topology, stored, name)
    return [item.tobytes() for item in sums]


def _stored(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    bfloat = tensor.dtype == torch.bfloat16
    return tensor.view(torch.int16).numpy().view(np.uint16) if bfloat else tensor.numpy()


def _bits(tensor: torch.Tensor) -> bytes:
    return _stored(tensor).tobytes()
