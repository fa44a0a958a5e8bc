"""What a report shows of an import: the time of each step, waiting by rank, one step's timeline."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from weft.importer.clocks import ClockOffset
from weft.importer.pairing import step_offsets
from weft.importer.rank_trace import RankTrace, TracedCall, TracedStep
from weft.vocabulary.layout import Layout

_MOST_STEPS: Final = 400
_MOST_INTERVALS: Final = 1500


def time_share(trace: RankTrace) -> list[dict[str, Any]]:
    """Microseconds by kind for the first steps of one rank, ``[{"step", "kinds_us"}]``.

    On CUDA: kernels of communication as far as they are exposed, compute kernels, and
    idle; on CPU: communication, and compute for the rest of the step.
    """
    calls = calls_of_steps(trace)
    return [
        {"step": _step_name(number, step), "kinds_us": _kinds(trace, step, calls[number])}
        for number, step in enumerate(trace.busy_steps[:_MOST_STEPS])
    ]


def waiting(traces: Mapping[int, RankTrace]) -> list[dict[str, Any]]:
    """Waiting and transfer of each rank, where the ranks it met are there."""
    rows = []
    for rank, trace in traces.items():
        known = [(c.wait_us, c.transfer_us) for c in trace.calls if c.wait_us is not None]
        if known:
            wait = sum(pair[0] or 0.0 for pair in known)
            transfer = sum(pair[1] or 0.0 for pair in known)
            rows.append(
                {"rank": rank, "wait_us": round(wait, 3), "transfer_us": round(transfer, 3)}
            )
    return rows


def timeline(
    traces: Mapping[int, RankTrace],
    clocks: Mapping[int, ClockOffset],
    layout: Layout,
    place: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
    """Every rank's events in one step, on the clock of the lowest rank.

    ``place``: a rank and a step of it that differs; a typical step where there is none.
    """
    rank = next(iter(traces)) if place is None else place[0]
    chosen = typical_step(traces[rank]) if place is None else place[1]
    if chosen is None:
        return []
    events = []
    for other, number in _same_step(traces, clocks, layout, rank, chosen).items():
        trace = traces[other]
        start_us = trace.busy_steps[number].start_us
        shift = clocks[other].at(start_us) if other in clocks else 0.0
        events += [
            event | {"rank": other, "start_us": start - shift, "end_us": end - shift}
            for event, start, end in _events(trace, number)
        ]
    origin = min((event["start_us"] for event in events), default=0.0)
    for event in events:
        event["start_us"] = round(event["start_us"] - origin, 3)
        event["end_us"] = round(event["end_us"] - origin, 3)
    return events


def _same_step(
    traces: Mapping[int, RankTrace],
    clocks: Mapping[int, ClockOffset],
    layout: Layout,
    rank: int,
    chosen: int,
) -> dict[int, int]:
    """The number that a step of ``rank`` has on each rank, of other replicas the nearest in time."""
    offsets = step_offsets(traces, layout)
    found = {}
    for other, trace in traces.items():
        number: int | None = chosen + offsets[rank] - offsets[other]
        if layout.replica_of(other) != layout.replica_of(rank):
            time = _start(traces[rank], clocks.get(rank), chosen)
            steps = range(len(trace.busy_steps))
            number = min(
                steps, key=lambda n: abs(_start(trace, clocks.get(other), n) - time), default=None
            )
        if number is not None and 0 <= number < len(trace.busy_steps):
            found[other] = number
    return found


def _start(trace: RankTrace, clock: ClockOffset | None, number: int) -> float:
    """When a step began on the clock of the lowest rank."""
    start_us = trace.busy_steps[number].start_us
    return start_us - (clock.at(start_us) if clock else 0.0)


def typical_step(trace: RankTrace) -> int | None:
    """The decode step of median length; another step where there is no decode step."""
    steps = trace.busy_steps
    numbers = [n for n, step in enumerate(steps) if step.label.phase == "decode"]
    numbers = numbers or list(range(len(steps)))
    numbers.sort(key=lambda n: steps[n].end_us - steps[n].start_us)
    return numbers[len(numbers) // 2] if numbers else None


def calls_of_steps(trace: RankTrace) -> dict[int, list[TracedCall]]:
    """The calls of each step, by its number; missing numbers have none."""
    calls: dict[int, list[TracedCall]] = defaultdict(list)
    for call in trace.calls:
        if call.step is not None:
            calls[call.step].append(call)
    return calls


def window(trace: RankTrace, step: TracedStep, calls: list[TracedCall]) -> tuple[float, float]:
    """From the first to the last thing of a step, on the clock of its kernels where it has some."""
    start, end = step.start_us, step.end_us
    if trace.on_device and step.device_start_us is not None and step.device_end_us is not None:
        start, end = step.device_start_us, step.device_end_us
        calls = [call for call in calls if call.on_device]
    start = min([start, *(call.start_us + (call.wait_us or 0.0) for call in calls)])
    return start, max([end, *(call.end_us for call in calls)])


def _kinds(trace: RankTrace, step: TracedStep, calls: list[TracedCall]) -> dict[str, float]:
    start, end = window(trace, step, calls)
    kinds: dict[str, float] = defaultdict(float)
    for call in calls:
        if trace.on_device and not call.on_device:
            continue
        before = max(0.0, start - call.start_us)
        wait = max(0.0, (call.wait_us or 0.0) - before)
        kinds["wait"] += wait
        kinds[call.operation] += max(
            0.0, call.duration_us - before - wait - (call.overlapped_us or 0.0)
        )
    communication = sum(kinds.values())
    if trace.on_device:
        compute = sum(upper - lower for lower, upper in compute_within(trace, start, end))
        kinds["idle"] = max(0.0, end - start - communication - compute)
    else:
        compute = max(0.0, end - start - communication)
    kinds["compute"] = compute
    return {kind: round(value, 3) for kind, value in kinds.items() if value > 0}


def compute_within(trace: RankTrace, start: float, end: float) -> Iterator[tuple[float, float]]:
    """Merged compute intervals of the device, cut to a window."""
    first = bisect_left(trace.compute_ends, start)
    last = bisect_right(trace.compute_starts, end)
    for index in range(first, last):
        lower, upper = trace.compute_starts[index], trace.compute_ends[index]
        yield max(lower, start), min(upper, end)


def _events(trace: RankTrace, number: int) -> Iterator[tuple[dict[str, Any], float, float]]:
    step = trace.busy_steps[number]
    calls = calls_of_steps(trace)[number]
    start, end = window(trace, step, calls)
    if trace.on_device:
        for lower, upper in list(compute_within(trace, start, end))[:_MOST_INTERVALS]:
            yield {"name": "compute kernels", "kind": "compute"}, lower, upper
    else:
        yield {"name": _step_name(number, step), "kind": "compute"}, step.start_us, step.end_us
    for call in calls[:_MOST_INTERVALS]:
        if trace.on_device and not call.on_device:
            continue
        begun = call.start_us + (call.wait_us or 0.0)
        if call.wait_us and begun > start:
            named = {"name": f"waiting for {call.operation}", "kind": "wait"}
            yield named, max(call.start_us, start), begun
        yield {"name": call.operation, "kind": call.operation}, begun, call.end_us


def _step_name(number: int, step: TracedStep) -> str:
    tokens = step.label.num_tokens
    size = "" if tokens is None else f", {tokens} tokens"
    return f"{number}: {step.label.phase}{size}"
