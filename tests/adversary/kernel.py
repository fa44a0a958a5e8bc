"""What the adversary must know of a kernel; a new one is a file in ``kernels/``."""

from __future__ import annotations

import ctypes
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from adversary.world import Shape, World, same
from allreduce_reference import Values
from weft.kernels.selection import GroupShape


@dataclass(frozen=True, kw_only=True)
class Call:
    """One launch on every rank."""

    kernel: Kernel
    count: int  # elements
    blocks: int
    threads: int
    rows: int = 1  # of the grid
    rows_in_all: int = 1
    misplaced: int = 0
    in_place: bool = False


class Prepared(ABC):
    """A call with its tensors in memory."""

    @abstractmethod
    def arguments(self, rank: int) -> list[Any]:
        """The kernel's arguments, as ctypes values."""

    @abstractmethod
    def problem(self, rank: int, *, complete: bool) -> str | None:
        """What is wrong with a rank's result, or None.

        complete: every element must be there; else each is right or as it was before.
        """

    def disagreement(self) -> str | None:
        """What the ranks do not have in common although all are done, or None."""
        return None


class Kernel(ABC):
    """One kernel: its source, the calls that may be made and the result they must have."""

    name: ClassVar[str]
    source: ClassVar[str]
    """The file among the kernels' sources."""

    nodes: ClassVar[bool] = False
    """Whether it is for groups of several nodes."""

    transport: ClassVar[str] = "peer"
    """Between nodes; kernels of one communicator have one."""

    cluster: ClassVar[bool] = False
    """Whether the blocks of a row of the grid are a cluster."""

    @abstractmethod
    def call(self, rng: random.Random, shape: Shape, threads: int, blocks: int) -> Call:
        """A call of random size."""

    @abstractmethod
    def prepare(self, call: Call, world: World) -> Prepared:
        """Put the tensors of a call into memory."""

    def mailbox_bytes(self, call: Call, shape: Shape) -> int:
        """What the call takes of a mailbox."""
        topology = GroupShape(num_ranks=shape.ranks, nodes=shape.nodes)
        return topology.needs(self.name, call.count * shape.item)


class PreparedAllReduce(Prepared):
    """Input, output and the sum that every rank must get."""

    def __init__(
        self, call: Call, world: World, expected: Values, inputs: Sequence[Values]
    ) -> None:
        self._call, self._world, self._expected = call, world, expected
        sources = [world.tensor(part, call.misplaced) for part in inputs]
        fresh = [world.values(call.count) for _ in inputs]
        targets = sources if call.in_place else [world.tensor(part) for part in fresh]
        self._before = [np.array(view) for view, _ in targets]
        self._targets = [view for view, _ in targets]
        self._addresses = [(s[1], t[1]) for s, t in zip(sources, targets, strict=True)]

    def arguments(self, rank: int) -> list[Any]:
        source, target = self._addresses[rank]
        count = ctypes.c_uint64(self._call.count)
        comm = self._world.comms[rank]
        records = self._call.kernel.records(self._world, rank)
        return [comm, *records, ctypes.c_uint64(source), ctypes.c_uint64(target), count]

    def problem(self, rank: int, *, complete: bool) -> str | None:
        dtype = self._world.shape.dtype
        right = same(self._targets[rank], self._expected, dtype)
        if not complete:
            right |= same(self._targets[rank], self._before[rank], dtype)
        if right.all():
            return None
        first = int(np.flatnonzero(~right)[0])
        return (
            f"rank {rank}: element {first} of {self._call.count} is {self._targets[rank][first]}, "
            f"not {self._expected[first]} ({int((~right).sum())} wrong)"
        )


class AllReduce(Kernel):
    """A kernel that takes (comm, records, source, target, count)."""

    def call(self, rng: random.Random, shape: Shape, threads: int, blocks: int) -> Call:
        at_once = threads * blocks * shape.per_vector
        count = rng.choice(
            (1, shape.per_vector, rng.randint(1, at_once), rng.randint(1, 3 * at_once))
        )
        misplaced = rng.choice((0, 0, 0, 1, shape.per_vector - 1))
        in_place = rng.random() < 0.4
        return Call(
            kernel=self,
            count=count,
            blocks=blocks,
            threads=threads,
            misplaced=misplaced,
            in_place=in_place,
        )

    def prepare(self, call: Call, world: World) -> Prepared:
        inputs = [world.values(call.count) for _ in range(world.shape.ranks)]
        return PreparedAllReduce(call, world, self.expected(inputs, world), inputs)

    def records(self, world: World, rank: int) -> list[Any]:
        """Arguments between the communicator and the tensors."""
        return []

    @abstractmethod
    def expected(self, inputs: Sequence[Values], world: World) -> Values:
        """The sum, in the kernel's order."""
