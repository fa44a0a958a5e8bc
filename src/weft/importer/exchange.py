"""The exchange of rows between experts: which calls it is, and how many rows take part.

Engines that spread experts over replicas exchange rows around them (vLLM 0.33, all2all.py). It
gathers rows, weights and ids in one NCCL group, so that one kernel is three calls; where the
replicas' rows are of unlike number the group holds broadcasts, and its way back reductions.
Replicas step together: one without requests runs a step of one row outside any label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Final

from weft.importer.layout_inference import RunLayout, group_ranks
from weft.importer.pairing import Meeting
from weft.importer.rank_trace import RankTrace, TracedCall
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.model_spec import ModelSpec

_OUT: Final = ("all_gather", "broadcast")
_BACK: Final = ("reduce_scatter", "reduce")
_MOST_COORDINATED: Final = 8
_IN_TWO: Final = re.compile(r"_ll::|low_latency|nixl_ep")
"""Low-latency kernels, which may be launched once to send and once more to receive."""

Everywhere = Mapping[tuple[int, int | None], int]
"""Rows of all expert-parallel ranks together, by replica and step."""


def spread_experts(run: RunLayout, traces: Mapping[int, RankTrace]) -> tuple[RunLayout, list[str]]:
    """The layout with ``ep`` over all replicas, where rows are exchanged that widely."""
    layout = run.layout
    every = layout.tp * layout.dp
    if not run.is_known or layout.dp == 1 or layout.ep > 1:
        return run, []
    calls = (call for trace in traces.values() for call in trace.calls)
    exchanges = (call for call in calls if call.operation == "all_to_all" or _is_back(call))
    if not any(call.num_ranks in (None, every) for call in exchanges):
        return run, []
    note = f"experts' rows are exchanged over all {every} ranks of the replicas (ep{every})"
    return replace(run, layout=replace(layout, ep=every)), [note]


def _is_back(call: TracedCall) -> bool:
    return call.operation in _BACK and (call.source == "kernel" or call.operation == _BACK[0])


def mark_exchange(traces: Mapping[int, RankTrace], run: RunLayout) -> None:
    """Give the calls of the exchange their group, and those of idle steps no step."""
    for rank, trace in traces.items() if run.layout.dp > 1 else ():
        for call in trace.calls:
            if call.num_ranks is None and is_coordination(call, run, trace):
                call.ranks = group_ranks(run.layout, "dp", rank)
        if run.layout.ep == 1 or not trace.busy_steps:
            continue
        ranks = group_ranks(run.layout, "ep", rank)
        calls = sorted(trace.calls, key=lambda call: (call.issued_us, call.start_us))
        _mark_calls(calls, ranks, run)
        _mark_idle(calls, ranks, trace)


def is_coordination(call: TracedCall, run: RunLayout, trace: RankTrace) -> bool:
    """VLLM's replicas all-reduce a few int32 numbers a replica before each step.

    Where no size was recorded: no data of a model on GPUs is int32, or reduced over gloo.
    """
    if run.layout.dp == 1 or call.operation != "all_reduce":
        return False
    elements = call.input_elements or prod(call.input_shape or (0,))
    if not elements and call.source == "gloo" and trace.on_device:
        return True
    dp = run.layout.dp
    return call.dtype == "int32" and elements in range(0, _MOST_COORDINATED * dp + 1, dp)


def _mark_calls(calls: Sequence[TracedCall], ranks: tuple[int, ...], run: RunLayout) -> None:
    out: TracedCall | None = None
    is_back = False
    for call in calls:
        if call.ranks is not None and set(call.ranks) != set(ranks):
            call.returns_rows = is_back and call.operation == "all_gather"
            is_back &= not call.returns_rows
        elif call.operation == "all_to_all":
            call.ranks = ranks
        elif call.operation in _OUT:
            call.returns_rows = is_back and run.layout.tp > 1 and call.ranks is None
            out, is_back = None if call.returns_rows else call, False
        elif _is_back(call):
            for part, operation in ((out, "all_gather"), (call, "reduce_scatter")):
                if part is not None:
                    part.operation, part.ranks = operation, ranks
            out, is_back = None, True


def _mark_idle(calls: Sequence[TracedCall], ranks: tuple[int, ...], trace: RankTrace) -> None:
    """Outside the labels nothing but an idle step exchanges rows; its calls begin with an all-reduce."""
    ends = [step.end_us for step in trace.busy_steps]
    gaps: dict[int | None, list[TracedCall]] = {}
    for call in calls:
        if call.step is None or call.precedes_step or call.issued_us > ends[call.step]:
            gaps.setdefault(None if call.precedes_step else call.step, []).append(call)
    for gap in gaps.values():
        if any(call.ranks == ranks and call.operation != "all_reduce" for call in gap):
            begun = False
            for call in gap:
                begun |= call.ranks == ranks or call.operation == "all_reduce"
                if begun:
                    call.step, call.is_idle = None, True


def rows_everywhere(
    found: Sequence[Meeting], traces: Mapping[int, RankTrace], run: RunLayout
) -> Everywhere:
    """Padded rows of all replicas in each step, by the ranks that meet in an exchange.

    Empty where a replica is missing or it is not told of every step who met.
    """
    layout = run.layout
    every: dict[tuple[int, int | None], int] = {}
    for meeting in found if layout.ep == layout.tp * layout.dp else ():
        met = {layout.replica_of(rank): rank for rank in meeting.calls}
        call = next(iter(meeting.calls.values()))
        is_exchange = call.operation in ("all_gather", "reduce_scatter")
        if len(met) < layout.dp or not is_exchange or len(call.ranks or ()) != layout.ep:
            continue
        steps = {replica: meeting.calls[rank].step for replica, rank in met.items()}
        shares = [_share(traces[met[replica]], step, layout.tp) for replica, step in steps.items()]
        if None not in shares:
            rows = layout.tp * sum(share or 0 for share in shares)
            every |= dict.fromkeys(steps.items(), rows)
    wanted = {
        (layout.replica_of(r), n)
        for r, trace in traces.items()
        for n in range(len(trace.busy_steps))
    }
    return every if every.keys() >= wanted else {}


def _share(trace: RankTrace, step: int | None, tp: int) -> int | None:
    """Rows of one rank in a step of its replica: one where it is idle."""
    rows = 1 if step is None else trace.busy_steps[step].label.num_tokens
    return None if rows is None else -(-rows // tp)


def with_kernels(
    conventions: Conventions, traces: Mapping[int, RankTrace], run: RunLayout, spec: ModelSpec
) -> Conventions:
    """The conventions with the libraries' kernels that the traces show, and their launches a layer."""
    stages = run.layout.layers_of_stages(spec.num_layers)
    counts: dict[str, Counter[int]] = {}
    in_two: set[str] = set()
    for rank, trace in traces.items():
        layers = sum(map(spec.has_experts, stages[run.layout.stage_of(rank)]))
        own = [c for c in trace.calls if c.operation == "all_to_all" and c.variant]
        in_two |= {call.variant or "" for call in own if _IN_TWO.search(call.name)}
        for (variant, _), count in Counter((c.variant or "", c.step) for c in own).items():
            counts.setdefault(variant, Counter())[round(count / layers) if layers else 1] += 1
    kernels = [(v, _launches(v, seen) if v in in_two else 1) for v, seen in sorted(counts.items())]
    return replace(conventions, expert_kernels=tuple(kernels))


def _launches(variant: str, seen: Counter[int]) -> int:
    """VLLM always receives a low-latency dispatch by a second launch, a combine only when it overlaps.

    Were the dispatch's number taken from the trace too, half as many layers would fit as well.
    """
    if variant.endswith("dispatch"):
        return 2
    return min(max(seen, key=lambda number: seen[number]) or 1, 2)
