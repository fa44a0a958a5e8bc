"""A server under load: the engine's scheduling simulated on the times of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from weft.errors import WorkloadError
from weft.prediction.latency import check_question, step_timer
from weft.prediction.memory import Memory, memory_of
from weft.prediction.operators import StepLoad
from weft.prediction.prediction import Machine
from weft.prediction.quantity import Estimate
from weft.prediction.simulation import Server, Visit
from weft.prediction.step_time import StageTime, StepTimer
from weft.prediction.traffic import Traffic
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec

_UNSTABLE: Final = 0.9


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of all requests in ms: the mean with its 90 % interval, and percentiles."""

    mean: Estimate
    p50: float
    p99: float

    @property
    def value(self) -> float:
        return self.mean.value

    def to_json(self) -> dict[str, float]:
        return self.mean.to_json() | {"p50": self.p50, "p99": self.p99}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What the clients of one layout see. Rates are of the whole layout.

    running: requests that decode at once at most. busy: part of the time with a step under way;
    prefill_share: part of that with prompts in it. preemptions: requests that lost their cache.
    """

    spec: ModelSpec
    layout: Layout
    traffic: Traffic
    machine: Machine
    running: float
    ttft_ms: Latency
    tpot_ms: Latency
    e2e_ms: Latency
    requests_per_s: float
    tokens_per_s: float
    busy: float
    prefill_share: float
    preemptions: int
    memory: Memory

    def to_json(self) -> dict[str, Any]:
        load = self.traffic.workload
        return {
            "schema": "weft.prediction.serving/1",
            "model": self.spec.name,
            "layout": self.layout.name,
            "nodes": self.layout.nodes,
            "workload": {"prompt_tokens": load.prompt_tokens, "decode_tokens": load.decode_tokens},
            "concurrency": self.traffic.concurrency,
            "rate": self.traffic.rate,
            "accelerator": self.machine.accelerator.name,
            "fabric": self.machine.fabric.name,
            "engine": self.machine.profile.name,
            "running": self.running,
            "ttft_ms": self.ttft_ms.to_json(),
            "tpot_ms": self.tpot_ms.to_json(),
            "e2e_ms": self.e2e_ms.to_json(),
            "requests_per_s": self.requests_per_s,
            "tokens_per_s": self.tokens_per_s,
            "busy": self.busy,
            "prefill_share": self.prefill_share,
            "preemptions": self.preemptions,
            "memory": self.memory.to_json(),
        }


def predict_serving(spec: ModelSpec, layout: Layout, traffic: Traffic, machine: Machine) -> Serving:
    """Serve ``traffic`` on ``layout``: one replica is simulated, the others do the same.

    Raises LayoutError and WorkloadError for what cannot run, and WorkloadError where requests
    come faster than they are answered.
    """
    check_question(spec, layout, traffic.workload)
    replica = Replica(spec, layout, machine)
    visits = traffic.visits(layout.dp)
    server = Server(
        policy=machine.profile.policy,
        step_us=replica.step_us,
        cache_tokens=replica.cache_tokens,
        clients=traffic.clients(layout.dp),
    )
    try:
        server.run(visits)
    except WorkloadError as error:
        raise WorkloadError(f"layout {layout.name}: {error}") from None
    _check_stable(layout, traffic, visits, server.now)
    return _seen(spec, layout, traffic, machine, replica, server, visits)


def _check_stable(layout: Layout, traffic: Traffic, visits: Sequence[Visit], end_us: float) -> None:
    if traffic.rate is None:
        return
    served = len(visits) / end_us * 1e6 * layout.dp
    last_half = visits[len(visits) // 2 :]
    waits = fmean(v.ttft_us for v in last_half) / max(fmean(v.ttft_us for v in visits), 1e-9)
    if served < _UNSTABLE * traffic.rate and waits > 1.2:
        raise WorkloadError(
            f"`rate` {traffic.rate:g}: {layout.name} answers at most {served:.3g} requests a "
            "second; lower `rate`, add replicas (`dp`) or see `weft plan --objective goodput`"
        )


def _seen(
    spec: ModelSpec,
    layout: Layout,
    traffic: Traffic,
    machine: Machine,
    replica: Replica,
    server: Server,
    visits: Sequence[Visit],
) -> Serving:
    profile = machine.profile
    host_us = profile.request_us.value + profile.server_us.value
    tokens = sum(visit.decode for visit in visits)
    per_s = layout.dp / server.now * 1e6
    several = [visit for visit in visits if visit.decode > 1] or visits
    return Serving(
        spec=spec,
        layout=layout,
        traffic=traffic,
        machine=machine,
        running=server.most_running * layout.dp,
        ttft_ms=_latency([v.ttft_us + host_us for v in visits], profile.server_ttft_spread.value),
        tpot_ms=_latency([v.tpot_us for v in several], profile.server_tpot_spread.value),
        e2e_ms=_latency(
            [v.end_us - v.arrival_us + host_us for v in visits], profile.server_tpot_spread.value
        ),
        requests_per_s=len(visits) * per_s,
        tokens_per_s=tokens * per_s,
        busy=server.busy_us / server.now,
        prefill_share=server.prompt_us / server.busy_us,
        preemptions=server.preemptions * layout.dp,
        memory=replica.memory(min(server.most_held, replica.cache_tokens)),
    )


def _latency(times_us: Sequence[float], spread: float) -> Latency:
    ordered = sorted(times_us)
    mean_ms = fmean(ordered) * 1e-3
    last = len(ordered) - 1
    return Latency(
        mean=Estimate.around(mean_ms, mean_ms * spread),
        p50=ordered[last // 2] * 1e-3,
        p99=ordered[math.ceil(0.99 * last)] * 1e-3,
    )


class Replica:
    """One replica of a layout: what its steps take, and what its cache holds."""

    def __init__(self, spec: ModelSpec, layout: Layout, machine: Machine) -> None:
        self.spec, self.layout, self.machine = machine.stored(spec), layout, machine
        self.timer: StepTimer = step_timer(spec, layout, machine)
        self.cache_tokens = self.memory(1).cache_limit_tokens
        self._known: dict[StepLoad, float] = {}

    def memory(self, tokens: float) -> Memory:
        return memory_of(
            self.spec,
            self.layout,
            tokens=tokens,
            accelerator=self.machine.accelerator,
            profile=self.machine.profile,
            step_rows=self.machine.profile.server_batched_tokens,
        )

    def step_us(self, step: StepLoad) -> float:
        """A step in a server. Sizes are rounded to 1.5 %: what is asked again is remembered."""
        if step.prefill_tokens:
            rounded = StepLoad(
                decode_sequences=_round(step.decode_sequences),
                decode_context=_round(step.decode_context),
                prefill_tokens=_round(step.prefill_tokens),
                prefill_sequences=_round(step.prefill_sequences),
                prefill_context=_round(step.prefill_context),
            )
            return self._remembered(rounded)
        below = 2.0 ** math.floor(math.log2(max(step.decode_context, 1.0)))
        running = _round(step.decode_sequences)
        low, high = (
            self._remembered(StepLoad(decode_sequences=running, decode_context=context))
            for context in (below, 2 * below)
        )
        return low + (high - low) * (step.decode_context - below) / below

    def _remembered(self, step: StepLoad) -> float:
        if step not in self._known:
            self._known[step] = self._step_us(step)
        return self._known[step]

    def _step_us(self, step: StepLoad) -> float:
        profile = self.machine.profile
        server = profile.server_step_us.value + step.sequences * profile.server_sequence_us.value
        if step.prefill_tokens:
            server += profile.server_prompt_step_us.value
            server += step.prefill_sequences * profile.server_prompt_us.value
        return _round_us(self.timer, step, self.layout.pp) + server


def _round(value: float) -> float:
    """``value`` with six significant bits, so within 1.6 %."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 64) / 64, exponent)


def _round_us(timer: StepTimer, step: StepLoad, stages: int) -> float:
    """A step of every micro-batch: one's way through all stages, or the busiest stage of all."""
    groups = max(1, min(stages, int(step.sequences)))
    times = timer.stages(step.part(groups))
    path = sum(stage.busy_us + stage.hop_us for stage in times)
    return max(path, groups * max(map(_busy, times)))


def _busy(stage: StageTime) -> float:
    return stage.busy_us
