"""Writes profiler traces of replicas that share their experts, as vLLM's and DeepEP's kernels leave them.

Nothing here uses weft's closed form. Every rank has its own compute times; whoever meets in a
collective leaves it together, so that waiting is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

from trace_builder import Batch, write_trace
from weft.vocabulary.schedule import Collective, Schedule

Library = Literal["nccl", "deepep", "deepep_low_latency", "records"]
Coordination = Literal["gloo", "gloo without shapes", "nccl"]
STORAGE = "(ncclDevKernelArgsStorage<4096ul>)"
DEEPEP = {
    "deepep": (
        ("void deep_ep::layout::get_dispatch_layout<256, 32, 8>(long const*, int*)",
         "void deep_ep::intranode::notify_dispatch<8>(int const*, int*)",
         "void deep_ep::intranode::dispatch<8, 768, 8192>(int4*, float*, int*)"),
        ("void deep_ep::intranode::cached_notify_combine<8>(void**, int*)",
         "void deep_ep::intranode::combine<__nv_bfloat16, 8, 768, 4096>(__nv_bfloat16*, float*)"),
    ),
    "deepep_low_latency": (
        ("void deep_ep::internode_ll::dispatch<false, false, 7168>(void*, void*)",) * 2,
        ("void deep_ep::internode_ll::combine<false, 7168, 9>(void*, void*)",),
    ),
}  # fmt: skip


@dataclass(kw_only=True)
class Replicas:
    """``rounds``: for each step that all take together, each replica's batch, None where it is idle."""

    layers: int
    hidden: int
    vocab: int
    chosen: int
    tp: int
    dp: int
    rounds: Sequence[Sequence[Batch | None]]
    library: Library = "nccl"
    coordination: Coordination = "gloo"
    compute_us: Callable[[int, int], float] = lambda _, tokens: 10.0 + tokens
    ranks: list[Writer] = field(default_factory=list)
    waited_us: dict[int, float] = field(default_factory=dict)

    def write(self, folder: Path) -> list[Path]:
        self.ranks = [Writer(rank=rank, run=self) for rank in range(self.tp * self.dp)]
        self.waited_us = dict.fromkeys(range(len(self.ranks)), 0.0)
        for number, batches in enumerate(self.rounds):
            self._round(number, batches)
        return [write_trace(w.trace(), folder / f"dp_rank{w.rank}.json") for w in self.ranks]

    def _round(self, number: int, batches: Sequence[Batch | None]) -> None:
        tokens = [1 if batch is None else batch.tokens for batch in batches]
        shares = [-(-count // self.tp) for count in tokens]
        starts = [writer.now for writer in self.ranks]
        rows = {w.rank: tokens[w.rank // self.tp] for w in self.ranks}
        own = {w.rank: shares[w.rank // self.tp] for w in self.ranks}
        self._coordinate()
        self._in_replicas("all_reduce", rows)
        for _ in range(self.layers):
            for writer in self.ranks:
                writer.now += self.compute_us(writer.rank, rows[writer.rank])
            self._in_replicas("all_reduce", rows)
            self._exchange(own, self.tp * sum(shares), is_even=len(set(shares)) == 1)
            self._in_replicas("all_gather", own)
        for writer in self.ranks:
            batch = batches[writer.rank // self.tp]
            writer.now += 5
            if batch is not None:
                writer.label(batch, starts[writer.rank], writer.now, number)
        for replica, batch in enumerate(batches):
            if batch is not None and self.tp > 1:
                self._logits(replica, batch)
        for writer in self.ranks:
            writer.now += 5

    def _meet(self, ranks: Sequence[int], transfer_us: float, emit: Any) -> None:
        end = max(self.ranks[rank].now for rank in ranks) + transfer_us
        for rank in ranks:
            writer = self.ranks[rank]
            emit(writer, writer.now, end - writer.now)
            if len({r // self.tp for r in ranks}) > 1:
                self.waited_us[rank] += end - transfer_us - writer.now
            writer.now = end + 1

    def _in_replicas(self, operation: str, rows: dict[int, int]) -> None:
        if self.tp == 1:
            return
        for replica in range(self.dp):
            ranks = self.of_replica(replica)
            shape = [rows[ranks[0]], self.hidden]
            self._meet(ranks, 4.0, lambda w, t, d, s=shape: w.operator(operation, s, t, d))

    def _logits(self, replica: int, batch: Batch) -> None:
        shape = [batch.sequences, -(-self.vocab // 64) * 64 // self.tp]
        ranks = self.of_replica(replica)
        self._meet(ranks, 4.0, lambda w, t, d: w.operator("all_gather", shape, t, d))

    def of_replica(self, replica: int) -> list[int]:
        return list(range(replica * self.tp, (replica + 1) * self.tp))

    def _coordinate(self) -> None:
        for tp_rank in range(self.tp):
            ranks = [replica * self.tp + tp_rank for replica in range(self.dp)]
            self._meet(ranks, 3.0, lambda w, t, d: w.coordination(t, d))

    def _exchange(self, own: dict[int, int], every: int, *, is_even: bool) -> None:
        world = range(len(self.ranks))
        if self.library in DEEPEP:
            for names in DEEPEP[self.library]:
                for name in names:
                    self._meet(world, 6.0, lambda w, t, d, n=name: w.kernel(n, t, d))
                for writer in self.ranks:
                    writer.now += 3
            return
        if self.library == "records":
            for width, dtype in (
                (self.hidden, "BFloat16"),
                (self.chosen, "Float"),
                (self.chosen, "Int"),
            ):
                self._meet(
                    world,
                    6.0,
                    lambda w, t, d, width=width, dtype=dtype: w.record(
                        "_allgather_base",
                        own[w.rank] * width,
                        every * width,
                        dtype,
                        "AllGather",
                        t,
                        d,
                    ),
                )
            self._meet(
                world,
                6.0,
                lambda w, t, d: w.record(
                    "_reduce_scatter_base",
                    every * self.hidden,
                    own[w.rank] * self.hidden,
                    "BFloat16",
                    "ReduceScatter_Sum_bf16",
                    t,
                    d,
                ),
            )
            return  # fmt: skip
        names = ("AllGather_RING_LL", "ReduceScatter_Sum_bf16_RING_LL")
        for name in names if is_even else ("Broadcast_RING_LL", "Reduce_Sum_bf16_RING_LL"):
            kernel = f"ncclDevKernel_{name}{STORAGE}"
            self._meet(world, 6.0, lambda w, t, d, n=kernel: w.kernel(n, t, d))


@dataclass(kw_only=True)
class Writer:
    rank: int
    run: Replicas
    now: float = 1_000_000.0
    events: list[dict[str, Any]] = field(default_factory=list)

    def emit(self, cat: str, name: str, start: float, duration: float, **args: Any) -> None:
        tid = 7 if cat == "kernel" else 100
        event = {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": start}
        self.events.append(event | {"dur": duration, "args": args})

    def kernel(self, name: str, start: float, duration: float, **args: Any) -> None:
        """A kernel and its launch, on nobody's behalf."""
        identity = 7 * len(self.events) + 3
        self.emit("cuda_runtime", "cudaLaunchKernelExC", start - 0.5, 0.4, correlation=identity)
        self.emit("kernel", name, start, duration, correlation=identity, **args)

    def operator(self, operation: str, shape: list[int], start: float, duration: float) -> None:
        identity = {"External id": 7 * len(self.events) + 1}
        dims = {"Input Dims": [shape, []], "Input type": ["c10::BFloat16", ""]}
        name = {"all_reduce": "AllReduce_Sum_bf16", "all_gather": "AllGather"}[operation]
        self.emit("cpu_op", f"vllm::{operation}", start - 0.5, 0.4, **identity, **dims)
        self.emit("kernel", f"ncclDevKernel_{name}_RING_LL{STORAGE}", start, duration, **identity)

    def record(
        self, name: str, sent: int, received: int, dtype: str, kernel: str, start: float, us: float
    ) -> None:
        world = list(range(len(self.run.ranks)))
        args = {"External id": 7 * len(self.events) + 2, "Collective name": name, "dtype": dtype,
                "In msg nelems": sent, "Out msg nelems": received,
                "Process Group Ranks": str(world), "Group size": len(world)}  # fmt: skip
        self.emit("cpu_op", "record_param_comms", start - 0.5, 0.4, **args)
        self.emit("kernel", f"ncclDevKernel_{kernel}_RING_LL{STORAGE}", start, us, **args)

    def call(self, row: Collective, ranks: list[int]) -> None:
        spelled = {"all_reduce": "allreduce", "all_gather": "_allgather_base",
                   "reduce_scatter": "_reduce_scatter_base", "all_to_all": "all_to_allv"}  # fmt: skip
        dtypes = {
            "bfloat16": "BFloat16",
            "float32": "Float",
            "int32": "Int",
            "int64": "Long",
            "uint8": "Byte",
        }
        assert row.input_shape is not None
        assert row.output_shape is not None
        args = {"External id": 7 * len(self.events) + 2, "Collective name": spelled[row.op],
                "In msg nelems": prod(row.input_shape), "Out msg nelems": prod(row.output_shape),
                "dtype": dtypes[row.dtype or ""], "Process Group Ranks": str(ranks),
                "Group size": len(ranks)}  # fmt: skip
        self.emit("cpu_op", "record_param_comms", self.now, 2, **args)
        self.emit("kernel", f"ncclDevKernel_SendRecv{STORAGE}", self.now + 1, 3, **args)
        self.now += 6

    def own_exchange(self, row: Collective) -> None:
        name = "dispatch_rows" if row.dtype == "uint8" else "combine_rows"
        self.emit("kernel", name, self.now + 1, 3)
        self.now += 6

    def coordination(self, start: float, duration: float) -> None:
        """Rows and graphs of each replica, over the host or by a kernel."""
        if self.run.coordination == "nccl":
            name = f"ncclDevKernel_AllReduce_Sum_u32_RING_LL{STORAGE}"
            return self.kernel(name, start, duration)
        dims = {"Input Dims": [[7, self.run.dp]], "Input type": ["int"]}
        told = dims if self.run.coordination == "gloo" else {}
        return self.emit("user_annotation", "gloo:all_reduce", start, duration, **told)

    def label(self, batch: Batch, start: float, end: float, number: int) -> None:
        name = (
            f"execute_context_{batch.context_requests}({batch.context_tokens})"
            f"_generation_{batch.decoding}({batch.decoding})"
        )
        self.emit("user_annotation", name, start, end - start, **{"External id": -1 - number})

    def trace(self) -> dict[str, Any]:
        tp, dp = self.run.tp, self.run.dp
        world = list(range(tp * dp))
        own = [self.rank]
        within = self.run.of_replica(self.rank // tp)
        across = [replica * tp + self.rank % tp for replica in range(dp)]
        order = [world, within, own, own, own, across, world]
        groups = [world, *(group for group in order for _ in range(2))]
        self.emit("kernel", "void gemm()", 0.0, 1.0)
        return {
            "distributedInfo": {
                "backend": "nccl", "rank": self.rank, "world_size": len(world),
                "pg_config": [
                    {"pg_name": str(n), "pg_desc": "default_pg" if n == 0 else "undefined",
                     "backend_config": "", "ranks": group}
                    for n, group in enumerate(groups)
                ],
            },
            "traceEvents": self.events,
        }  # fmt: skip


def write_schedule(schedule: Schedule, folder: Path, *, own_exchange: bool = False) -> list[Path]:
    """The rows of a schedule of one stage as every rank's records of torch.distributed.

    own_exchange: of weft's exchange no more than its kernels' names.
    """
    layout, load = schedule.layout, schedule.workload
    batch = -(-load.batch // layout.dp)
    steps = [("prefill", 1, batch * load.prompt_tokens, 0)]
    steps += [("decode", load.num_decode_steps, 0, batch)] * load.num_decode_steps
    paths = []
    for rank in range(layout.world_size):
        writer = Writer(
            rank=rank,
            run=Replicas(
                layers=0, hidden=0, vocab=0, chosen=0, tp=layout.tp, dp=layout.dp, rounds=()
            ),
        )
        for number, (phase, repeats, context, decoding) in enumerate(steps):
            start = writer.now
            for row in schedule.collectives:
                for _ in range(row.count // repeats if row.phase == phase else 0):
                    if own_exchange and row.op == "all_to_all":
                        writer.own_exchange(row)
                        continue
                    writer.call(row, list(layout.group_of(row.group, rank)))
            label = Batch(
                context_requests=batch * bool(context),
                context_tokens=context,
                decoding=decoding,
            )
            writer.label(label, start, writer.now, number)
            writer.now += 5
        paths.append(write_trace(writer.trace(), folder / f"rank{rank}.json"))
    return paths
