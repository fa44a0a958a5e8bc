"""All-reduce, residual addition and RMSNorm in one kernel, and the last two alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from adversary.kernel import Call, Kernel, Prepared
from adversary.world import Shape, World, same
from allreduce_reference import Values, from_float, to_float
from weft.kernels.residual_rms_norm import RowsRecord
from weft.kernels.selection import GroupShape

EPSILON = 1e-5
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


class Rows(Prepared):
    """Rows of every rank: the residual must have its bits, the norm those of rank 0."""

    def __init__(self, call: Call, world: World, *, reduce: bool) -> None:
        self._world, self._call = world, call
        ranks, shape = range(world.shape.ranks), world.shape
        self._hidden = call.count // call.rows_in_all
        inputs = [world.values(call.count) for _ in ranks]
        residual, weight = world.values(call.count), world.values(self._hidden)
        self._inputs = [world.tensor(part) for part in inputs]
        self._residuals = [world.tensor(residual) for _ in ranks]
        self._added = self._residuals
        if not call.in_place:
            self._added = [world.tensor(world.values(call.count)) for _ in ranks]
        self._added_before = [np.array(view) for view, _ in self._added]
        self._weights = [world.tensor(weight) for _ in ranks]
        self._outputs = [world.tensor(world.values(call.count)) for _ in ranks]
        self._before = [np.array(view) for view, _ in self._outputs]
        sums = [world.sum_in_order(inputs)] * shape.ranks if reduce else inputs
        self._expected = [self._results(part, residual, weight) for part in sums]
        self._reduce = reduce

    def _results(self, total: Values, residual: Values, weight: Values) -> tuple[Values, Values]:
        """(residual, norm) of one rank; the norm in float32."""
        dtype = self._world.shape.dtype
        added = self._world.add(residual, total)
        with np.errstate(all="ignore"):
            rows = to_float(added, dtype).reshape(-1, self._hidden)
            scale = 1 / np.sqrt((rows**2).mean(1, keepdims=True, dtype=np.float32) + EPSILON)
            normed = to_float(from_float((rows * scale).reshape(-1), dtype), dtype)
            return added, normed * np.tile(to_float(weight, dtype), len(rows))

    def arguments(self, rank: int) -> list[Any]:
        rows = RowsRecord(
            input=self._inputs[rank][1],
            residual=self._residuals[rank][1],
            residual_out=self._added[rank][1],
            weight=self._weights[rank][1],
            output=self._outputs[rank][1],
            num_rows=self._call.rows_in_all,
            row_vectors=self._hidden // self._world.shape.per_vector,
            per_element=1 / self._hidden,
            epsilon=EPSILON,
        )
        return [self._world.comms[rank], rows] if self._reduce else [rows]

    def problem(self, rank: int, *, complete: bool) -> str | None:
        dtype = self._world.shape.dtype
        residual, norm = self._expected[rank]
        right = same(self._added[rank][0], residual, dtype)
        normal = self._near(rank, norm)
        if not complete:
            right |= same(self._added[rank][0], self._added_before[rank], dtype)
            normal |= same(self._outputs[rank][0], self._before[rank], dtype)
            normal |= np.isnan(to_float(self._outputs[rank][0], dtype))
        if not right.all():
            return f"rank {rank}: {int((~right).sum())} elements of the residual are wrong"
        if not normal.all():
            return f"rank {rank}: {int((~normal).sum())} elements of the norm are wrong"
        return None

    def disagreement(self) -> str | None:
        first, dtype = self._outputs[0][0], self._world.shape.dtype
        for rank, (view, _) in enumerate(self._outputs):
            if self._reduce and not same(view, first, dtype).all():
                return f"rank {rank}: its norm is not that of rank 0"
        return None

    def _near(self, rank: int, norm: Values) -> Values:
        dtype = self._world.shape.dtype
        with np.errstate(all="ignore"):
            found = to_float(self._outputs[rank][0], dtype)
            norm = to_float(from_float(norm, dtype), dtype)
            near = np.abs(found - norm) <= TOLERANCE[dtype] * (np.abs(norm) + 1e-3)
            return near | (np.isnan(found) & np.isnan(norm)) | (found == norm)


class Fused(Kernel):
    name = "all_reduce_residual_rms_norm"
    source = "residual_rms_norm.cu"
    cluster = True
    reduce = True

    def call(self, rng: random.Random, shape: Shape, threads: int, blocks: int) -> Call:
        cluster = rng.choice((1, 1, 2))
        threads = rng.choice((32, 32, 64))  # whole warps
        rows = rng.randint(1, 3)
        vectors = rng.randint(1, cluster * threads)
        return Call(
            kernel=self,
            count=rows * vectors * shape.per_vector,
            blocks=cluster,
            threads=threads,
            rows=rng.randint(1, rows),
            rows_in_all=rows,
            in_place=rng.random() < 0.5,
        )

    def prepare(self, call: Call, world: World) -> Prepared:
        return Rows(call, world, reduce=self.reduce)

    def mailbox_bytes(self, call: Call, shape: Shape) -> int:
        return GroupShape(num_ranks=shape.ranks).needs("one_shot", call.count * shape.item)


class Plain(Fused):
    name = "residual_rms_norm"
    reduce = False

    def mailbox_bytes(self, call: Call, shape: Shape) -> int:
        return 0


KERNELS = (Fused(),)
