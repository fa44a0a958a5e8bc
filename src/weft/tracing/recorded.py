"""From recorded calls to the rows of a schedule."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

from weft.comm.recorder import Call
from weft.vocabulary.schedule import Collective, Operation, Statistics, merge_rows


def rows_from_calls(calls: Iterable[Call], stage: int, *, timed: bool) -> tuple[Collective, ...]:
    """One row per kind of call; with ``timed`` also the calls' durations (waiting included).

    A row of which all calls ran in replayed graphs has none.
    """
    calls = list(calls)
    singles = [_row(call, stage) for call in calls]
    merged = merge_rows(singles)
    if not timed:
        return merged
    durations: dict[tuple[object, ...], list[float]] = {}
    for row, call in zip(singles, calls, strict=True):
        if call.timed:
            durations.setdefault(row.key, []).append((call.end_s - call.start_s) * 1e6)
    return tuple(
        replace(row, duration_us=summarize(durations[row.key]), bound="upper")
        if row.key in durations
        else row
        for row in merged
    )


def summarize(values: list[float]) -> Statistics:
    """Min, median, max and total of a non-empty list."""
    return Statistics(
        min=min(values), median=statistics.median(values), max=max(values), total=sum(values)
    )


def _row(call: Call, stage: int) -> Collective:
    is_kernel = call.op not in get_args(Operation)
    return Collective(
        stage=stage,
        phase=call.phase,
        op="all_to_all" if is_kernel else call.op,
        group=call.group,
        group_size=call.group_size,
        count=1,
        input_shape=call.input_shape,
        output_shape=call.output_shape,
        dtype=call.dtype,
        fused=call.fused,
        provenance="metadata",
        variant=call.op if is_kernel else None,
        bound="upper" if is_kernel or call.op == "all_to_all" else None,  # weft's own exchange
    )
