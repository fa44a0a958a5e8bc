"""Random cases for the kernels: drawn from a seed, run, and held against what must come out."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adversary import machine
from adversary.kernel import Call, Kernel, Prepared
from adversary.kernels import KERNELS
from adversary.machine import (
    CaseRecord,
    Launch,
    Machine,
    Outcome,
    Outside,
    Patch,
    Region,
    Step,
    Stream,
)
from adversary.world import Shape, World

TIMEOUT_NS = 3 * 10**9
STEPS = range(7)

PATIENT, WHEN_STUCK, LEAPS = 0, 1, 2
"""How the clock of a case goes."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run; equal cases run equally."""

    shape: Shape
    calls: tuple[Call, ...]
    first_epoch: int
    rooms: tuple[int, ...]
    overlap: bool
    special: bool
    seed: int
    clock: int = PATIENT
    lost_rank: int | None = None
    lost_call: int | None = None  # it never makes this call
    lost_after: int = 0  # or it stops after so many steps
    schedules: int = 1

    @property
    def transport(self) -> str:
        return self.calls[0].kernel.transport

    @property
    def part_bytes(self) -> int:
        """What one rank of a node sums, at most."""
        most = max(call.count for call in self.calls)
        vectors = -(-most // self.shape.per_vector)
        return -(-vectors // self.shape.local) * 16


def any_case(
    number: int,
    shapes: Sequence[Shape],
    kernels: Sequence[Kernel] = KERNELS,
    schedules: int = 8,
    transport: str | None = None,
) -> Case:
    """Case ``number`` of a long run: any shape, and now and then a lost rank or a wild clock.

    transport: of the kernels, where not any.
    schedules: for how many cases a set of calls counts that nothing disturbs. One set in sixteen
    runs the fused kernels, whose warps make it several times as long.
    """
    rng = random.Random(f"mix {number}")
    fused = rng.random() < 1 / 16
    some = [kernel for kernel in kernels if fused or not kernel.cluster]
    lose, clock = rng.random() < 0.2, LEAPS if rng.random() < 0.1 else PATIENT
    shape = rng.choice(shapes)
    transport = transport or _transport(rng, shape)
    case = draw(number, shape, [k for k in some if k.transport == transport], clock, lose)
    alike = not lose and clock == PATIENT and transport == "peer"
    return replace(case, schedules=schedules if alike else 1)


def _transport(rng: random.Random, shape: Shape) -> str:
    if shape.nodes == 1:
        return "peer"
    return rng.choices(("peer", "nvshmem", "tcp"), (12, 3, 1))[0]


class Wrong(AssertionError):
    """The protocol let something happen that must not."""


def draw(
    seed: int, shape: Shape, kernels: Sequence[Kernel], clock: int = PATIENT, lose: bool = False
) -> Case:
    """A random case. lose: one rank dies somewhere."""
    rng = random.Random(seed)
    usable = [kernel for kernel in kernels if shape.nodes > 1 or not kernel.nodes]
    transport = rng.choice(usable).transport
    usable = [kernel for kernel in usable if kernel.transport == transport]
    calls = tuple(_call(rng, shape, rng.choice(usable)) for _ in range(rng.randint(1, 4)))
    near_wrap = rng.random() < 0.3
    case = Case(
        shape=shape,
        calls=calls,
        first_epoch=(-rng.randint(1, 3)) % 2**32 if near_wrap else rng.randrange(2**32),
        rooms=tuple(rng.choice((1, 2, 3, 100)) for _ in range(shape.ranks)),
        overlap=rng.random() < 0.75,
        special=rng.random() < 0.3,
        seed=seed,
        clock=clock,
    )
    return _lose(rng, case) if lose else case


def _call(rng: random.Random, shape: Shape, kernel: Kernel) -> Call:
    return kernel.call(rng, shape, rng.choice((1, 2, 3, 4, 8)), rng.choice((1, 1, 2, 3)))


def _lose(rng: random.Random, case: Case) -> Case:
    rank = rng.randrange(case.shape.ranks)
    if rng.random() < 0.4:
        return replace(
            case, clock=WHEN_STUCK, lost_rank=rank, lost_call=rng.randrange(len(case.calls))
        )
    most = int(40 * 1.4 ** rng.randint(0, 16))
    return replace(case, clock=WHEN_STUCK, lost_rank=rank, lost_after=rng.randint(1, most))


def machine_for(
    shape: Shape, kernels: Sequence[Kernel] = KERNELS, patches: tuple[Patch, ...] = ()
) -> Machine:
    """The compiled kernels that a shape can use."""
    usable = [kernel for kernel in kernels if shape.nodes > 1 or not kernel.nodes]
    lines = [f'#include "{source}"' for source in sorted({kernel.source for kernel in usable})]
    lines += [f"ADVERSARY_KERNEL({kernel.name})" for kernel in usable]
    ours = tuple(patch for patch in patches if not patch[0].endswith(".py"))
    return machine.load("\n".join(lines) + "\n", shape.defines(), ours)


class Run:
    """A case in memory, ready to run and to be judged."""

    def __init__(self, case: Case, compiled: Machine, patches: tuple[Patch, ...] = ()) -> None:
        self.case, self._machine = case, compiled
        shape = case.shape
        self.world = World(
            shape=shape,
            mailbox_bytes=max(call.kernel.mailbox_bytes(call, shape) for call in case.calls),
            first_epoch=case.first_epoch,
            timeout_ns=TIMEOUT_NS,
            rng=np.random.default_rng(case.seed),
            special=case.special,
            transport=case.transport,
            part_bytes=case.part_bytes,
            seed=case.seed,
            patches=patches,
        )
        self.calls: list[Prepared] = [call.kernel.prepare(call, self.world) for call in case.calls]

    def run(self) -> Outcome:
        """Run it and judge it; Wrong says what is wrong."""
        record = self._record()
        outcome = self._machine.run(record)
        if self.case.transport == "tcp" and (error := self.world.proxies.close()) is not None:
            raise Wrong(f"a proxy: {error!r}: {self.case}") from error
        if outcome.failed:
            raise Wrong(f"{outcome.message.decode()}: {self.case}")
        problem = self._problem(lost=bool(outcome.lost) or self.case.lost_call is not None)
        if problem is not None:
            raise Wrong(f"{problem}: {self.case}")
        return outcome

    def _problem(self, lost: bool) -> str | None:
        faulty = lost or self.case.clock == LEAPS
        survivors = [
            r for r in range(self.case.shape.ranks) if not (lost and r == self.case.lost_rank)
        ]
        for rank in survivors:
            for call in self.calls:
                found = call.problem(rank, complete=not faulty or not self.world.fault(rank).raised)
                if found:
                    return found
        if not faulty:
            found = (call.disagreement() for call in self.calls)
            return next(filter(None, found), None) or self.world.unrest(len(self.calls))
        return next(filter(None, map(self._wrong_fault, survivors)), None)

    def _wrong_fault(self, rank: int) -> str | None:
        """Whether a rank that could not finish told its host so, in words that are true."""
        fault = self.world.fault(rank)
        if not fault.raised:
            return None  # then its results are complete
        if fault.step not in STEPS:
            return f"rank {rank}: a fault in step {fault.step}"
        if (fault.epoch - self.case.first_epoch - 1) % 2**32 >= len(self.calls):
            return f"rank {rank}: a fault in epoch {fault.epoch}"
        missing = {other for other in range(32) if fault.missing >> other & 1}
        if not missing or not missing <= set(range(self.case.shape.ranks)):
            return f"rank {rank}: a fault that misses {missing}"
        if self._names_the_lost() and missing != {self.case.lost_rank}:
            return f"rank {rank} misses {missing}, but {self.case.lost_rank} made no call {self.case.lost_call}"
        return None

    def _names_the_lost(self) -> bool:
        """Whether everybody knows who made no call (docs/all-reduce-proof.md says where not)."""
        case, local = self.case, self.case.shape.local
        if case.lost_call is None or case.lost_rank is None or case.transport == "peer":
            return case.lost_call is not None
        call = case.calls[case.lost_call]
        vectors = -(-call.count // case.shape.per_vector)
        shares = vectors > case.lost_rank % local * -(-vectors // local)
        return min(case.rooms) >= call.blocks and (shares or case.transport == "tcp")

    def _record(self) -> CaseRecord:
        case, world = self.case, self.world
        self._keep: list[object] = []
        streams = (Stream * case.shape.ranks)(
            *(self._stream(rank) for rank in range(case.shape.ranks))
        )
        regions = (Region * len(world.arena.regions))(*world.arena.regions)
        outside = self._outside()
        self._keep += [streams, regions, outside]
        return CaseRecord(
            memory=world.arena.address,
            num_bytes=world.arena.used,
            streams=streams,
            regions=regions,
            outside=outside,
            num_ranks=case.shape.ranks,
            num_regions=len(regions),
            num_outside=len(outside),
            overlap=case.overlap,
            seed=case.seed,
            timeout_ns=TIMEOUT_NS,
            lost_rank=case.shape.ranks
            if case.lost_rank is None or not case.lost_after
            else case.lost_rank,
            clock=case.clock,
            lost_after=case.lost_after,
            schedules=case.schedules,
            heap_bytes=world.shmem.heap_bytes if case.transport == "nvshmem" else 0,
        )

    def _outside(self) -> ctypes.Array[Outside]:
        """The processes beside the GPUs."""
        if self.case.transport != "tcp":
            return (Outside * 0)()
        proxies = self.world.proxies
        step = Step(proxies.step)
        self._keep.append(step)
        size = proxies.layout.num_bytes
        memory = ((rank, proxies.memory[rank]) for rank in proxies.ranks)
        rows = [Outside(step, first, first + size, rank, 0) for rank, first in memory]
        return (Outside * len(rows))(*rows)

    def _stream(self, rank: int) -> Stream:
        last = self.case.lost_call if rank == self.case.lost_rank else None
        launches = [
            self._launch(call, prepared.arguments(rank))
            for call, prepared in zip(self.case.calls[:last], self.calls, strict=False)
        ]
        array = (Launch * len(launches))(*launches)
        self._keep.append(array)
        return Stream(launches=array, num_launches=len(launches), room=self.case.rooms[rank])

    def _launch(
        self, call: Call, arguments: Sequence[ctypes._SimpleCData | ctypes.Structure]
    ) -> Launch:
        self._keep += arguments
        launch = Launch(
            kernel=self._machine.entry(call.kernel.name),
            blocks_x=call.blocks,
            blocks_y=call.rows,
            threads=call.threads,
            cluster=call.kernel.cluster,
        )
        for place, argument in enumerate(arguments):
            launch.arguments[place] = ctypes.addressof(argument)
        return launch


def check(
    case: Case, kernels: Sequence[Kernel] = KERNELS, patches: tuple[Patch, ...] = ()
) -> Outcome:
    """Run one case; Wrong where the protocol fails."""
    return Run(case, machine_for(case.shape, kernels, patches), patches).run()
