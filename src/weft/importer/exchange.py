"""The exchange of rows between experts: which calls it is, and how many rows take part.

Engines that spread experts over replicas exchange rows around them (vLLM 0.33, all2all.py). It
gathers rows, weights and ids in one NCCL group, so that one kernel is three calls; where the
replicas' rows are of unlike number the group holds broadcasts, and its way back reductions.
Replicas step together: one without requests runs a step of one row outside any label.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Final

from weft.importer.layout_inference import RunLayout, group_ranks
from weft.importer.pairing import Meeting
from weft.importer.rank_trace import RankTrace, TracedCall
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec

_OUT: Final = ("all_gather", "broadcast")
_BACK: Final = ("reduce_scatter", "reduce")
_RESIZING: Final = ("all_gather", "reduce_scatter")
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
    is_labelled = any(trace.busy_steps for trace in traces.values())
    for rank, trace in traces.items() if run.layout.dp > 1 else ():
        for call in trace.calls:
            if call.num_ranks is None and is_coordination(call, run, trace):
                call.ranks = group_ranks(run.layout, "dp", rank)
        if run.layout.ep == 1 or not is_labelled:
            continue
        ranks = group_ranks(run.layout, "ep", rank)
        calls = sorted(trace.calls, key=lambda call: (call.issued_us, call.start_us))
        _mark_calls(calls, ranks, run)
        _mark_idle(calls, ranks, trace, run.layout.tp)


def is_coordination(call: TracedCall, run: RunLayout, trace: RankTrace) -> bool:
    """VLLM's replicas all-reduce a few int32 numbers a replica before each step.

    Where no size was recorded: no data of a model on GPUs is int32, or reduced over gloo; on CPUs
    tensor-parallel ranks reduce in shared memory.
    """
    if run.layout.dp == 1 or call.operation != "all_reduce":
        return False
    elements = call.input_elements or prod(call.input_shape or (0,))
    if not elements and call.source == "gloo":
        return run.layout.tp == 1 or trace.reduces_beside_gloo
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


def _mark_idle(
    calls: Sequence[TracedCall], ranks: tuple[int, ...], trace: RankTrace, tp: int
) -> None:
    """Outside the labels, replicas run steps without requests, which begin with an all-reduce.

    A profiler that starts or stops within a step keeps its calls without its label: all before
    the first label, and all after the last one but the logits.
    """
    ends = [step.end_us for step in trace.busy_steps]
    gaps: dict[int | None, list[TracedCall]] = {}
    for call in calls:
        if call.step is None or call.precedes_step or call.issued_us > ends[call.step]:
            gaps.setdefault(None if call.precedes_step else call.step, []).append(call)
    for step, gap in gaps.items():
        begun, is_cut = step is None, step == len(ends) - 1
        exchanges = [call.ranks == ranks and call.operation != "all_reduce" for call in gap]
        for call, is_exchange in (
            zip(gap, exchanges, strict=True) if is_cut or any(exchanges) or begun else ()
        ):
            begun |= is_exchange or call.operation == "all_reduce"
            begun |= is_cut and not (call.operation == "all_gather" and tp > 1)
            if begun:
                call.step, call.is_idle = None, True


def rows_everywhere(
    found: Sequence[Meeting], traces: Mapping[int, RankTrace], run: RunLayout
) -> Everywhere:
    """Padded rows of all replicas in each step: as recorded, or by the ranks that met in it.

    Without steps of which neither tells: the others' profilers may have started later.
    """
    layout = run.layout
    every: dict[tuple[int, int | None], int] = {}
    if layout.ep != layout.tp * layout.dp:
        return every
    for meeting in found:
        met = {layout.replica_of(rank): call for rank, call in meeting.calls.items()}
        shares = [
            _share(traces[rank], call.step, layout.tp) for rank, call in meeting.calls.items()
        ]
        if len(met) == layout.dp and None not in shares and _is_exchange(meeting.calls, layout.ep):
            rows = layout.ep // len(shares) * sum(share or 0 for share in shares)
            every |= {(replica, call.step): rows for replica, call in met.items()}
    return {**every, **_recorded(traces, layout)}


def _is_exchange(calls: Mapping[int, TracedCall], ep: int) -> bool:
    return all(c.operation in _RESIZING and len(c.ranks or ()) == ep for c in calls.values())


def _recorded(traces: Mapping[int, RankTrace], layout: Layout) -> dict[tuple[int, int | None], int]:
    """What most calls of a step recorded that they gathered or scattered, in rows."""
    seen: dict[tuple[int, int | None], Counter[int]] = defaultdict(Counter)
    for rank, trace in traces.items():
        for call in trace.calls:
            own = _share(trace, call.step, layout.tp)
            sizes = sorted((call.input_elements or 0, call.output_elements or 0))
            if own and sizes[0] and sizes[0] % own == 0 and _is_exchange({rank: call}, layout.ep):
                rows, rest = divmod(sizes[1], sizes[0] // own)
                seen[layout.replica_of(rank), call.step][rows] += not rest
    return {step: max(rows, key=lambda number: rows[number]) for step, rows in seen.items()}


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
        own = [
            c
            for c in trace.calls
            if c.operation == "all_to_all" and c.variant and c.step is not None
        ]
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
