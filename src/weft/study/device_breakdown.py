"""Steps taken apart from the timelines of the GPUs: which kernel ran when, on every rank.

Kernels of a rank follow each other: one that was started early waits for the one in front,
so its own time begins when that one has ended. What is left between kernels is idle.
Kernels that communicate are told by their names (NCCL's and weft's own); they become calls,
so that waiting is found as in breakdown.py. Times are of the profiler, which puts the GPUs
of one machine on the host's clock; what is left of their differences is taken out.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from weft.study.breakdown import PhaseBreakdown, RankRecord, TimedCall, meetings, waiting_s
from weft.vocabulary.layout import GroupKind, Layout
from weft.vocabulary.schedule import Operation

OPERATIONS: Final[dict[str, Operation]] = {
    "AllReduce": "all_reduce",
    "AllGather": "all_gather",
    "ReduceScatter": "reduce_scatter",
    "Broadcast": "broadcast",
    "SendRecv": "send",
}
"""What follows ``ncclDevKernel_`` (or ``ncclSymkDevKernel_``) in a kernel's name."""
OWN_ALL_REDUCES: Final = ("one_shot", "two_shot", "hierarchical_", "all_reduce_residual_rms_norm")
OWN_EXCHANGE: Final = ("dispatch_rows", "combine_rows")


@dataclass(frozen=True, kw_only=True)
class TracedKernel:
    """One kernel (or copy) of a rank, in seconds of the host's clock."""

    name: str
    start_s: float
    end_s: float


def device_breakdown(
    ranks: Sequence[Sequence[TracedKernel]], layout: Layout, num_steps: int
) -> PhaseBreakdown:
    """Milliseconds over ``num_steps`` steps, mean over the ranks, from each rank's kernels."""
    split = [_split(kernels, layout, rank) for rank, kernels in enumerate(ranks)]
    records = [
        RankRecord(rank=rank, steps=(), calls=calls) for rank, (calls, _) in enumerate(split)
    ]
    waits = waiting_s(aligned(records, layout), layout)
    start = min(kernel.start_s for kernels in ranks for kernel in kernels)
    end = max(kernel.end_s for kernels in ranks for kernel in kernels)
    total = PhaseBreakdown(num_steps=num_steps)
    for record, (calls, compute_s) in zip(records, split, strict=True):
        inside_s = sum(call.end_s - call.start_s for call in calls)
        waited_s = sum(waits[record.rank])
        share = 1e3 / len(ranks)
        total.compute_ms += compute_s * share
        total.communication_ms += (inside_s - waited_s) * share
        total.wait_ms += waited_s * share
        total.idle_ms += (end - start - compute_s - inside_s) * share
    return total


def operation_of(name: str) -> Operation | None:
    """What a kernel communicates, or None for one that computes."""
    _, found, rest = name.partition("DevKernel_")
    if found and name.startswith("nccl"):
        return next((op for word, op in OPERATIONS.items() if rest.startswith(word)), "all_to_all")
    if name.startswith(OWN_EXCHANGE):
        return "all_to_all"
    return "all_reduce" if name.startswith(OWN_ALL_REDUCES) else None


def aligned(records: Sequence[RankRecord], layout: Layout) -> list[RankRecord]:
    """The records on the clock of rank 0, taking calls that belong together to end together."""
    ends: dict[tuple[int, int], list[float]] = {}
    for calls in meetings(records, layout):
        for rank, _, call in calls:
            for other, _, met in calls:
                ends.setdefault((rank, other), []).append(met.end_s - call.end_s)
    offset_s = {0: 0.0}
    for _ in records:
        for (known, other), differences in ends.items():
            if known in offset_s and other not in offset_s:
                offset_s[other] = offset_s[known] + statistics.median(differences)
    return [_shifted(record, -offset_s.get(record.rank, 0.0)) for record in records]


def _split(
    kernels: Iterable[TracedKernel], layout: Layout, rank: int
) -> tuple[list[TimedCall], float]:
    """The rank's calls in order, and the seconds of its other kernels, one after the other."""
    calls: list[TimedCall] = []
    compute_s, now_s = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: (kernel.start_s, kernel.end_s)):
        start_s = max(kernel.start_s, now_s)
        now_s = max(kernel.end_s, start_s)
        op = operation_of(kernel.name)
        if op is None:
            compute_s += now_s - start_s
        else:
            op = _direction(layout, rank, calls) if op == "send" else op
            group: GroupKind = "pp" if op in ("send", "recv", "broadcast") else "tp"
            calls.append(TimedCall(op=op, group=group, step=0, start_s=start_s, end_s=now_s))
    return calls, compute_s


def _direction(layout: Layout, rank: int, before: Sequence[TimedCall]) -> Operation:
    """Whether the next kernel between stages sends or receives: a stage in between takes turns."""
    stage = layout.stage_of(rank)
    if stage == 0:
        return "send"
    last = next((call.op for call in reversed(before) if call.op in ("send", "recv")), "send")
    return "recv" if stage == layout.pp - 1 or last == "send" else "send"


def _shifted(record: RankRecord, by_s: float) -> RankRecord:
    calls = [
        replace(call, start_s=call.start_s + by_s, end_s=call.end_s + by_s) for call in record.calls
    ]
    return RankRecord(rank=record.rank, steps=record.steps, calls=calls)
