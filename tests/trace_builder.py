"""Writes profiler traces of made-up runs: what an engine would leave, by its own arithmetic.

Nothing here uses weft's closed form, so that the two can be held against each other.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Style = Literal["nccl-records", "custom-kernels", "cuda-graphs", "shared-memory"]

BF16_RECORD, BF16_CPU = "BFloat16", "c10::BFloat16"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step: requests in prefill with their tokens, and requests in decode."""

    context_requests: int = 0
    context_tokens: int = 0
    decoding: int = 0

    @property
    def tokens(self) -> int:
        return self.context_tokens + self.decoding

    @property
    def sequences(self) -> int:
        return self.context_requests + self.decoding


@dataclass(frozen=True, kw_only=True)
class Run:
    layers: tuple[int, ...]
    hidden: int
    vocab: int
    tp: int
    pp: int
    batches: tuple[Batch, ...]
    style: Style

    @property
    def on_device(self) -> bool:
        return self.style != "shared-memory"


@dataclass
class RankWriter:
    """Events of one rank; ``now`` is its clock in microseconds."""

    rank: int
    run: Run
    now: float = 1_000_000.0
    events: list[dict[str, Any]] = field(default_factory=list)
    next_id: int = 1

    @property
    def stage(self) -> int:
        return self.rank // self.run.tp

    @property
    def tp_ranks(self) -> list[int]:
        return list(range(self.stage * self.run.tp, (self.stage + 1) * self.run.tp))

    @property
    def pp_ranks(self) -> list[int]:
        return [stage * self.run.tp + self.rank % self.run.tp for stage in range(self.run.pp)]

    def emit(self, cat: str, name: str, start: float, dur: float, **args: Any) -> None:
        tid = 7 if cat in ("kernel", "gpu_user_annotation") else 100
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": tid, "ts": start, "dur": dur}
            | {"args": args}
        )

    def record(
        self, name: str, sent: int, received: int, ranks: list[int], kernel: str, **more: Any
    ) -> None:
        """A call of torch.distributed over NCCL: operator, record, kernel."""
        operator, identity = self.next_id, self.next_id + 1
        self.next_id += 2
        self.emit("cpu_op", f"c10d::{name}_", self.now, 20, **{"External id": operator})
        args = {
            "External id": identity,
            "Collective name": name,
            "In msg nelems": sent,
            "Out msg nelems": received,
            "dtype": more.pop("dtype", BF16_RECORD),
            "Process Group Name": "3",
            "Process Group Ranks": str(ranks),
            "Group size": len(ranks),
        } | more
        self.emit("cpu_op", "record_param_comms", self.now + 2, 15, **args)
        self.emit("kernel", f"ncclDevKernel_{kernel}(args)", self.now + 10, 5, **args)
        self.now += 30

    def all_reduce(self, tokens: int) -> None:
        shape = [tokens, self.run.hidden]
        if self.run.style == "shared-memory":
            types = ["Scalar", BF16_CPU]
            dims = {"Input Dims": [[], shape], "Input type": types}
            self.emit("cpu_op", "_C::shm_allreduce", self.now, 5, **dims)
        elif self.run.style == "nccl-records":
            size = tokens * self.run.hidden
            self.record("allreduce", size, size, self.tp_ranks, "AllReduce_Sum_bf16_RING_LL")
        elif self.run.style == "custom-kernels":
            dims = {"Input Dims": [shape, []], "Input type": [BF16_CPU, ""]}
            self.emit("cpu_op", "vllm::all_reduce", self.now, 10, **dims)
            inner = {"External id": self.next_id} | dims
            self.emit("cpu_op", "_C_custom_ar::all_reduce", self.now + 1, 5, **inner)
            kernel = "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(x)"
            self.emit("kernel", kernel, self.now + 6, 4, **{"External id": self.next_id})
            self.next_id += 1
        else:
            kernel = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(args)"
            self.emit("kernel", kernel, self.now + 5000, 4, correlation=self.rank_launch)
        self.now += 12

    rank_launch: int = 0

    def forward(self, batch: Batch) -> None:
        """The labelled part of a step."""
        start = self.now
        if self.run.style == "cuda-graphs":
            self.rank_launch = 10_000 + self.next_id
            self.next_id += 1
            launch = {"correlation": self.rank_launch}
            self.emit("cuda_runtime", "cudaGraphLaunch", self.now + 1, 3, **launch)
        self.now += 5
        if self.run.tp > 1:
            for _ in range(2 * self.run.layers[self.stage] + (self.stage == 0)):
                self.all_reduce(batch.tokens)
        self.now += 5
        self.label(batch, start, self.now)

    def label(self, batch: Batch, start: float, end: float) -> None:
        name = (
            f"execute_context_{batch.context_requests}({batch.context_tokens})"
            f"_generation_{batch.decoding}({batch.decoding})"
        )
        identity = {"External id": self.next_id}
        self.next_id += 1
        self.emit("user_annotation", name, start, end - start, **identity)

    def logits(self, batch: Batch) -> None:
        shard = -(-self.run.vocab // 64) * 64 // self.run.tp
        shape, gathered = [batch.sequences, shard], [batch.sequences * self.run.tp, shard]
        if self.run.on_device:
            elements = shape[0] * shape[1]
            whole = elements * self.run.tp
            self.record("_allgather_base", elements, whole, self.tp_ranks, "AllGather_RING_LL")
        else:
            types = ["Scalar", BF16_CPU, BF16_CPU]
            dims = {"Input Dims": [[], shape, gathered], "Input type": types}
            self.emit("cpu_op", "_C::shm_all_gather", self.now, 5, **dims)
        self.now += 10

    def receive(self, batch: Batch) -> None:
        if not self.run.on_device:
            self.emit("cpu_op", "_C::shm_recv_tensor_list", self.now, 9, **{"Input Dims": [[], []]})
            self.now += 15
            return
        for _ in range(2):
            self.emit("user_annotation", "gloo:recv", self.now, 9)
            self.now += 15
        part = batch.tokens * self.run.hidden // self.run.tp
        source = {"Src Rank": self.rank - self.run.tp}
        for _ in range(2):
            self.record("recv", part, part, self.pp_ranks, "SendRecv", **source)
        for _ in range(2 if self.run.tp > 1 else 0):
            whole = part * self.run.tp
            self.record("_allgather_base", part, whole, self.tp_ranks, "AllGather_RING_LL")

    def send(self, batch: Batch) -> None:
        if not self.run.on_device:
            shape = [batch.tokens, self.run.hidden]
            dims = {
                "Input Dims": [[], [shape, shape, [93]], []],
                "Input type": ["Scalar", "TensorList", "Scalar"],
            }
            self.emit("cpu_op", "_C::shm_send_tensor_list", self.now, 9, **dims)
            self.now += 15
            return
        part = batch.tokens * self.run.hidden // self.run.tp
        target = {"Dst Rank": self.rank + self.run.tp}
        for _ in range(2):
            self.record("send", part, part, self.pp_ranks, "SendRecv", **target)

    def sampled_ids(self, batch: Batch) -> None:
        for count, dtype in ((batch.sequences, "Long"), (2 * batch.sequences, "Int")):
            more = {"dtype": dtype, "Process Group Description": "pp_broadcast"}
            self.record("broadcast", count, count, self.pp_ranks, "Broadcast_RING_LL", **more)

    def step(self, batch: Batch) -> None:
        self.compute(batch)
        self.finish(batch)

    def compute(self, batch: Batch) -> None:
        is_last = self.stage == self.run.pp - 1
        if self.stage:
            self.receive(batch)
        self.forward(batch)
        if not is_last:
            self.send(batch)
        elif self.run.tp > 1:
            self.logits(batch)

    def finish(self, batch: Batch) -> None:
        if self.run.pp > 1 and self.run.on_device:
            self.sampled_ids(batch)
        self.label(Batch(), self.now, self.now + 3)
        self.now += 10

    def trace(self) -> dict[str, Any]:
        world = self.run.tp * self.run.pp
        if self.run.on_device:
            self.emit("kernel", "void gemm()", 0.0, 1.0)
        return {
            "schemaVersion": 1,
            "distributedInfo": {
                "backend": "nccl" if self.run.on_device else "gloo",
                "rank": self.rank,
                "world_size": world,
                "pg_config": self.groups(),
            },
            "traceEvents": self.events,
            "traceName": "trace.json",
        }

    def groups(self) -> list[dict[str, Any]]:
        """The order in which vLLM makes its groups, each with a twin for the host."""
        world = list(range(self.run.tp * self.run.pp))
        twins = [world, self.tp_ranks, [self.rank], [self.rank], self.pp_ranks, [self.rank]]
        ranks = [world, *(group for group in twins for _ in range(2))]
        return [
            {
                "pg_name": str(number),
                "pg_desc": "default_pg" if number == 0 else "undefined",
                "backend_config": "",
                "ranks": group,
            }
            for number, group in enumerate(ranks)
        ]


def write_run(run: Run, folder: Path) -> list[Path]:
    """Traces of all ranks of ``run``; the clock of each rank is 7 µs ahead of the one before.

    A stage begins when the one before has sent, and the sampled ids go out after the last.
    """
    writers = [RankWriter(rank, run) for rank in range(run.tp * run.pp)]
    now = 1_000_000.0
    for batch in run.batches:
        for stage in range(run.pp):
            now = _advance(
                writers[stage * run.tp : (stage + 1) * run.tp], now, RankWriter.compute, batch
            )
        now = _advance(writers, now, RankWriter.finish, batch)
    return [write_trace(writer.trace(), folder / f"rank{writer.rank}.json") for writer in writers]


def _advance(
    writers: list[RankWriter], now: float, part: Callable[[RankWriter, Batch], None], batch: Batch
) -> float:
    for writer in writers:
        writer.now = now + 7.0 * writer.rank
        part(writer, batch)
    return max(writer.now - 7.0 * writer.rank for writer in writers)


def write_trace(document: Any, path: Path) -> Path:
    text = json.dumps(document).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path
