"""Rows to the ranks of their experts, and partial sums back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adversary.kernel import Call, Kernel, Prepared
from adversary.world import Shape, World, same
from allreduce_reference import Values
from weft.kernels.exchange_kernels import CombineRecord, DispatchRecord, mailbox_bytes


@dataclass(frozen=True, kw_only=True)
class Exchange(Call):
    """So many rows of every rank, of so many vectors and choices."""

    num_rows: int
    vectors: int
    chosen: int
    share: int
    crowd: float
    """How likely a choice is one of a single rank's experts."""


class Tensors(Prepared):
    """Tensors that a call writes, and what each must hold at its end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._written: list[list[tuple[Values, Values, Values]]] = []

    def output(self, before: Values, expected: Values) -> tuple[Values, Values, Values, int]:
        """(tensor, what it held, what it must hold, its address)."""
        view, address = self._world.tensor(before)
        return view, np.array(before), expected, address

    def problem(self, rank: int, *, complete: bool) -> str | None:
        for number, (found, before, expected) in enumerate(self._written[rank]):
            right = self._same(found, expected)
            if not complete:
                right |= self._same(found, before)
            if not right.all():
                first = int(np.flatnonzero(~right)[0])
                return (
                    f"rank {rank}: element {first} of output {number} is {found[first]}, "
                    f"not {expected[first]} ({int((~right).sum())} wrong)"
                )
        return None

    def _same(self, found: Values, expected: Values) -> Values:
        if found.dtype in (np.int64, np.int32):
            return found == expected
        alike = found.dtype == np.float32
        return same(found, expected, "float32" if alike else self._world.shape.dtype)


class Dispatched(Tensors):
    """Rows, choices and passages of a random routing."""

    def __init__(self, call: Exchange, world: World) -> None:
        super().__init__(world)
        self._call, ranks = call, range(world.shape.ranks)
        width = call.vectors * world.shape.per_vector
        rows = [world.values(call.num_rows * width) for _ in ranks]
        weights = [self._weights() for _ in ranks]
        experts = [self._experts() for _ in ranks]
        inputs = [
            [world.tensor(part)[1] for part in (rows[r], experts[r].reshape(-1), weights[r])]
            for r in ranks
        ]
        self._records = []
        for rank in ranks:
            outputs = [
                self.output(before, expected)
                for before, expected in zip(
                    self._before(width), self._expected(rank, rows, experts, weights), strict=True
                )
            ]
            self._written.append([output[:3] for output in outputs])
            addresses = (*inputs[rank], *(output[3] for output in outputs))
            self._records.append(
                DispatchRecord(*addresses, call.num_rows, call.vectors, call.chosen, call.share)
            )

    def arguments(self, rank: int) -> list[Any]:
        return [self._world.comms[rank], self._records[rank]]

    def _weights(self) -> Values:
        call, world = self._call, self._world
        found = world.rng.random(call.num_rows * call.chosen, dtype=np.float32)
        if world.special:
            found.view(np.uint32)[world.rng.random(len(found)) < 0.2] = 0xFFFFFFFF
        return found

    def _experts(self) -> Values:
        """[R, k]: different ones of all ranks, often of one; now and then nobody's."""
        call, rng = self._call, self._world.rng
        count = call.share * self._world.shape.ranks
        favoured = range(call.share) if rng.random() < 0.5 else range(count - call.share, count)
        found = np.empty((call.num_rows, call.chosen), dtype=np.int64)
        for row in found:
            pool = favoured if rng.random() < call.crowd else range(count)
            some = rng.permutation(pool)[: call.chosen]
            row[:] = count + rng.integers(0, 3)
            row[: len(some)] = some
            row[rng.random(call.chosen) < 0.1] = count
            rng.shuffle(row)
        return found

    def _before(self, width: int) -> tuple[Values, ...]:
        call, world = self._call, self._world
        every = world.shape.ranks * call.num_rows
        return (
            world.values(every * width),
            np.full(every * call.chosen, -7, dtype=np.int64),
            np.full(every * call.chosen, -7, dtype=np.float32),
            np.full(call.num_rows, -7, dtype=np.int32),
        )

    def _expected(
        self,
        rank: int,
        rows: Sequence[Values],
        experts: Sequence[Values],
        weights: Sequence[Values],
    ) -> tuple[Values, ...]:
        """What NumPy makes of all ranks' rows for one of them."""
        call, ranks = self._call, range(self._world.shape.ranks)
        owner = [ids // call.share for ids in experts]
        wanted = [(owner[s] == rank).any(axis=1) for s in ranks]
        there = np.concatenate(
            [np.where(wanted[s][:, None], rows[s].reshape(call.num_rows, -1), 0) for s in ranks]
        )
        local = np.concatenate(
            [np.where(owner[s] == rank, experts[s] - rank * call.share, call.share) for s in ranks]
        )
        came = sum(wanted[s].astype(np.int32) << s for s in ranks if s != rank)
        went = sum((owner[rank] == d).any(axis=1).astype(np.int32) << 16 + d for d in ranks)
        passages = (np.zeros(call.num_rows, np.int32) + came) | went
        return (
            there.reshape(-1).astype(rows[0].dtype),
            local.reshape(-1),
            np.concatenate(weights),
            passages.astype(np.int32),
        )


class Combined(Tensors):
    """Partial sums of every rank for the rows that are said to have gone there."""

    def __init__(self, call: Exchange, world: World) -> None:
        super().__init__(world)
        count, ranks = call.num_rows, range(world.shape.ranks)
        width = call.vectors * world.shape.per_vector
        went = world.rng.random((len(ranks), len(ranks), count)) < world.rng.choice((0.2, 0.6, 1))
        partial = [world.values(len(ranks) * count * width) for _ in ranks]
        sources = [world.tensor(part)[1] for part in partial]
        self._records = []
        for rank in ranks:
            passages = np.zeros(count, dtype=np.int32)
            for other in ranks:
                passages |= (went[other, rank] & (other != rank)).astype(np.int32) << other
                passages |= went[rank, other].astype(np.int32) << 16 + other
            own = slice(rank * count, (rank + 1) * count)
            parts = [
                np.where(went[rank, d][:, None], partial[d].reshape(-1, width)[own], 0)
                .reshape(-1)
                .astype(partial[d].dtype)
                for d in ranks
            ]
            output = self.output(world.values(count * width), world.sum_in_order(parts))
            self._written.append([output[:3]])
            addresses = sources[rank], world.tensor(passages)[1], output[3]
            self._records.append(CombineRecord(*addresses, count, call.vectors))

    def arguments(self, rank: int) -> list[Any]:
        return [self._world.comms[rank], self._records[rank]]


class DispatchRows(Kernel):
    name = "dispatch_rows"
    source = "exchange.cu"

    def call(self, rng: random.Random, shape: Shape, threads: int, blocks: int) -> Call:
        chosen, num_rows, vectors = rng.randint(1, 5), rng.randint(1, 3), rng.randint(1, 5)
        return Exchange(
            kernel=self,
            count=num_rows * vectors * shape.per_vector,
            blocks=min(blocks, num_rows),
            threads=max(threads, -(-chosen // 2)),
            num_rows=num_rows,
            vectors=vectors,
            chosen=chosen,
            share=rng.randint(1, 4),
            crowd=rng.choice((0, 0.5, 1)),
        )

    def prepare(self, call: Call, world: World) -> Prepared:
        assert isinstance(call, Exchange)
        return Dispatched(call, world)

    def mailbox_bytes(self, call: Call, shape: Shape) -> int:
        assert isinstance(call, Exchange)
        return mailbox_bytes(shape.ranks, call.num_rows, call.vectors, call.chosen)


class CombineRows(DispatchRows):
    name = "combine_rows"

    def prepare(self, call: Call, world: World) -> Prepared:
        assert isinstance(call, Exchange)
        return Combined(call, world)


KERNELS = (DispatchRows(), CombineRows())
