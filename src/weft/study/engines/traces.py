"""A profiled window: its traces imported, held against the engine's schedule, its steps split."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weft.importer.imported import ImportedTrace
from weft.importer.importing import import_traces
from weft.importer.inputs import given_model
from weft.importer.rank_trace import RankTrace, TracedCall
from weft.study.engines.server import EngineFailed, EngineServer
from weft.vocabulary.layout import Layout

WAIT_S: Final = 120.0
Floats = NDArray[np.float64]


def collect(folder: Path, num_ranks: int, server: EngineServer) -> list[Path]:
    """The trace files of all ranks, once they no longer grow."""
    deadline = time.monotonic() + WAIT_S
    before: list[int] = []
    while True:
        files = sorted(path for path in folder.iterdir() if ".trace.json" in path.name)
        ranks = [path for path in files if re.search(r"rank\d", path.name)]
        sizes = [path.stat().st_size for path in ranks]
        if len(ranks) >= num_ranks and sizes == before:
            return ranks
        server.check()
        if time.monotonic() > deadline:
            raise EngineFailed(f"{len(ranks)} of {num_ranks} traces within {WAIT_S:g} s")
        before = sizes
        time.sleep(0.5)


def read(files: Sequence[Path], model: str, layout: Layout, engine: str) -> ImportedTrace:
    """``weft import`` of the window."""
    return import_traces(files, model=given_model(model), engine=engine, layout=layout)


def summary(imported: ImportedTrace) -> dict[str, Any]:
    """The verdict, how often what was sent, and where the time of a step went, by phase."""
    verdict, schedule = imported.conformance, imported.schedule
    sizes: dict[str, dict[str, int]] = defaultdict(dict)
    for row in schedule.collectives:
        if row.message_bytes is not None:
            key = str(row.message_bytes)
            sizes[row.op][key] = sizes[row.op].get(key, 0) + row.count
    return {
        "conforms": verdict.conforms,
        "verdict": verdict.verdict,
        "explanation": verdict.reason,
        "message_sizes": dict(sizes),
        "unexplained": sum(calls.count for calls in imported.unexplained),
        "phases": list(phases(imported)),
    }


def phases(imported: ImportedTrace) -> Iterator[dict[str, Any]]:
    """Microseconds a step of compute, communication, waiting and idle; means over steps and ranks.

    Waiting is None, and part of communication, where a rank or a clock is not known.
    """
    for phase in ("prefill", "mixed", "decode"):
        parts = [found for trace in imported.traces.values() if (found := _parts(trace, phase))]
        if not parts:
            continue
        calls = [
            call
            for trace in imported.traces.values()
            for call in trace.calls
            if call.step is not None and trace.busy_steps[call.step].label.phase == phase
        ]
        known = all(call.wait_us is not None for call in calls)
        steps = sum(count for count, _ in parts)
        waiting = sum(call.wait_us or 0.0 for call in calls) / steps if known else None
        total = {kind: sum(one[kind] for _, one in parts) / steps for kind in parts[0][1]}
        total["communication_us"] = max(0.0, total["communication_us"] - (waiting or 0.0))
        yield {"phase": phase, "steps": steps // len(parts), **total, "waiting_us": waiting}


def _parts(trace: RankTrace, phase: str) -> tuple[int, dict[str, float]] | None:
    """How many steps of the phase a rank ran, and the microseconds of all of them by kind."""
    numbers = [n for n, step in enumerate(trace.busy_steps) if step.label.phase == phase]
    if not numbers:
        return None
    split = _on_device if trace.on_device else _on_host
    found = [split(trace, number, calls) for number, calls in _calls_of(trace, numbers)]
    return len(numbers), {kind: sum(one[kind] for one in found) for kind in found[0]}


def _calls_of(trace: RankTrace, numbers: list[int]) -> Iterator[tuple[int, list[TracedCall]]]:
    of_step: dict[int | None, list[TracedCall]] = defaultdict(list)
    for call in trace.calls:
        of_step[call.step].append(call)
    return ((number, of_step[number]) for number in numbers)


def _on_host(trace: RankTrace, number: int, calls: list[TracedCall]) -> dict[str, float]:
    """On a CPU: what is not communication is compute; idle until the next step begins."""
    step, inside = trace.busy_steps[number], sum(call.duration_us for call in calls)
    after = trace.busy_steps[number + 1 : number + 2]
    end = max([step.end_us, *(call.end_us for call in calls)])
    return {
        "compute_us": max(0.0, step.end_us - step.start_us - inside),
        "communication_us": inside,
        "idle_us": max(0.0, after[0].start_us - end) if after else 0.0,
    }


def _on_device(trace: RankTrace, number: int, calls: list[TracedCall]) -> dict[str, float]:
    """On a GPU: from the first kernel of the step to that of the next; communication if exposed."""
    starts = _device_starts(trace)
    low, high = starts[number], starts[number + 1]
    compute = _overlap(trace, low, high)
    inside = sum(call.duration_us - (call.overlapped_us or 0.0) for call in calls)
    return {
        "compute_us": compute,
        "communication_us": inside,
        "idle_us": max(0.0, high - low - compute - inside),
    }


def _device_starts(trace: RankTrace) -> list[float]:
    """When each step began on the device, and when the last one ended."""
    first_call: dict[int, float] = {}
    for call in trace.calls:
        if call.step is not None and call.on_device:
            first_call[call.step] = min(call.start_us, first_call.get(call.step, np.inf))
    starts = [
        step.device_start_us or first_call.get(number, step.start_us)
        for number, step in enumerate(trace.busy_steps)
    ]
    last = trace.busy_steps[-1].device_end_us
    ends = [call.end_us for call in trace.calls] + list(trace.compute_ends[-1:])
    return [*starts, last or max(ends, default=starts[-1])]


def _overlap(trace: RankTrace, low: float, high: float) -> float:
    """Microseconds of compute kernels between two times."""
    starts: Floats = np.clip(np.frombuffer(trace.compute_starts, dtype=np.float64), low, high)
    ends: Floats = np.clip(np.frombuffer(trace.compute_ends, dtype=np.float64), low, high)
    return float((ends - starts).sum())
