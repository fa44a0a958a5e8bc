"""Pipelines: how micro-batches of a batch fill the stages, and what a decode step takes.

The engine keeps at most ``pp`` steps in flight. The requests of a batch become visible
one after another, so the first steps take few of them; a group that is in flight
stays a group while it decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weft.predict.step_time import StageTime

StageTimes = Callable[[float], Sequence[StageTime]]


@dataclass(frozen=True, kw_only=True)
class Fill:
    """Start-up of a batch: µs until its last request has a first token, and decode groups.

    chunks: requests in each step, in order; groups: sequences that decode together, one
    entry a group in flight.
    """

    first_tokens_us: float
    chunks: tuple[float, ...]
    groups: tuple[float, ...]


def fill(
    num_requests: int,
    limit: float,
    num_stages: int,
    *,
    arrival_us: float,
    schedule_us: float,
    stage_times: StageTimes,
) -> Fill:
    """Send ``num_requests`` prompts through the stages, at most ``limit`` a step.

    ``limit`` below 1 splits each prompt in several steps. ``stage_times(requests)``
    gives the stages' times of a step with that many (perhaps fractional) prompts.
    """
    free = [0.0] * num_stages
    slots: list[tuple[float, int]] = []
    groups: list[float] = []
    chunks: list[float] = []
    left, clock = float(num_requests), 0.0
    while left > 1e-9:
        slot = len(slots)
        if slot >= num_stages:
            slot = min(range(num_stages), key=lambda index: slots[index][0])
            clock = max(clock, slots[slot][0])
        started = num_requests - left
        visible = _visible(num_requests, clock, arrival_us) - started
        if visible < min(1.0, left) - 1e-9:
            clock = max(clock, started * arrival_us)
            visible = min(1.0, left)
        chunk = min(visible, limit, left)
        done = _pass(stage_times(chunk), free, clock)
        chunks.append(chunk)
        if slot < len(slots):
            slots[slot] = (done, slot)
            groups[slot] += chunk
        else:
            slots.append((done, slot))
            groups.append(chunk)
        left -= chunk
        clock += schedule_us
    finished = max(done for done, _ in slots)
    return Fill(first_tokens_us=finished, chunks=tuple(chunks), groups=tuple(groups))


def _visible(num_requests: int, clock: float, arrival_us: float) -> float:
    if arrival_us <= 0:
        return num_requests
    return min(num_requests, int(clock / arrival_us) + 1)


def _pass(times: Sequence[StageTime], free: list[float], start: float) -> float:
    """Move one micro-batch through the stages; ``free`` is when each stage is idle again."""
    clock = start
    for index, stage in enumerate(times):
        clock = max(clock, free[index]) + stage.busy_us
        free[index] = clock
        clock += stage.hop_us
    return clock


@dataclass(frozen=True, kw_only=True)
class Period:
    """Time between two tokens of a sequence, and the stage steps that it consists of.

    follows_path: one group's way through all stages decides (hops count); otherwise
    the busiest stage does, which every group must pass.
    """

    time_us: float
    steps: tuple[StageTime, ...]
    follows_path: bool


def decode_period(groups: Sequence[float], stage_times: StageTimes) -> Period:
    """One decode step of every sequence, with ``groups`` of them in flight at once."""
    different = {group: stage_times(group) for group in set(groups)}
    path = max(different.values(), key=_path_us)
    busiest_stage = max(
        range(len(path)),
        key=lambda stage: sum(different[group][stage].busy_us for group in groups),
    )
    busiest = tuple(different[group][busiest_stage] for group in groups)
    if _path_us(path) >= _load_us(busiest):
        return Period(time_us=_path_us(path), steps=tuple(path), follows_path=True)
    return Period(time_us=_load_us(busiest), steps=busiest, follows_path=False)


def _path_us(stages: Sequence[StageTime]) -> float:
    return sum(stage.busy_us + stage.hop_us for stage in stages)


def _load_us(steps: Sequence[StageTime]) -> float:
    return sum(step.busy_us for step in steps)
