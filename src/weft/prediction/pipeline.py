"""Pipelines: how micro-batches of a batch fill the stages, and what a decode step takes.

The engine keeps at most ``pp`` steps in flight. The requests of a batch become visible
one after another, so the first steps take few of them. While decoding, the batch is in as
many groups as steps in flight (taken as equal: a group stays together once it is started).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from weft.prediction.step_time import StageTime

StageTimes = Callable[[float], Sequence[StageTime]]


@dataclass(frozen=True, kw_only=True)
class Fill:
    """Start-up of a batch: µs until its last request has a first token; requests a step."""

    first_tokens_us: float
    chunks: tuple[float, ...]


def fill(
    num_requests: int,
    limit: float,
    num_stages: int,
    *,
    arrival_us: float,
    schedule_us: float,
    stage_times: StageTimes,
    early_launch: bool = False,
) -> Fill:
    """Send ``num_requests`` prompts through the stages, at most ``limit`` a step.

    ``limit`` below 1 splits each prompt in several steps. ``stage_times(requests)``
    gives the stages' times of a step with that many (perhaps fractional) prompts.
    ``early_launch``: a stage launches its kernels while the stages before it still work.
    """
    free = [0.0] * num_stages
    in_flight: list[float] = []
    chunks: list[float] = []
    left, clock = float(num_requests), 0.0
    while left > 1e-9:
        if len(in_flight) >= num_stages:
            clock = max(clock, heappop(in_flight))
        started = num_requests - left
        visible = _visible(num_requests, clock, arrival_us) - started
        if visible < min(1.0, left) - 1e-9:
            clock = max(clock, started * arrival_us)
            visible = min(1.0, left)
        chunk = min(visible, limit, left)
        heappush(in_flight, _pass(stage_times(chunk), free, clock, early_launch))
        chunks.append(chunk)
        left -= chunk
        clock += schedule_us
    return Fill(first_tokens_us=max(in_flight), chunks=tuple(chunks))


def _visible(num_requests: int, clock: float, arrival_us: float) -> float:
    if arrival_us <= 0:
        return num_requests
    return min(num_requests, clock / arrival_us + 1)


def _pass(times: Sequence[StageTime], free: list[float], start: float, early_launch: bool) -> float:
    """Move one micro-batch through the stages; ``free`` is when each stage is idle again."""
    clock = start
    for index, stage in enumerate(times):
        launch = max(start if early_launch else clock, free[index]) + stage.host_us
        clock = max(max(clock, free[index]) + stage.device_us, launch)
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


def decode_period(sequences: float, num_stages: int, stage_times: StageTimes) -> Period:
    """One decode step of ``sequences`` in as many equal groups as stages allow."""
    num_groups = max(1, min(num_stages, int(sequences)))
    stages = stage_times(sequences / num_groups)
    busiest = max(stages, key=lambda stage: stage.busy_us)
    load_us = num_groups * busiest.busy_us
    if _path_us(stages) >= load_us:
        return Period(time_us=_path_us(stages), steps=tuple(stages), follows_path=True)
    return Period(time_us=load_us, steps=(busiest,) * num_groups, follows_path=False)


def _path_us(stages: Sequence[StageTime]) -> float:
    return sum(stage.busy_us + stage.hop_us for stage in stages)
