"""A server under load: the engine's scheduling simulated on the times of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Final

from weft.errors import WorkloadError
from weft.prediction.latency import check_question, step_timer
from weft.prediction.memory import Memory, memory_of
from weft.prediction.operators import StepLoad
from weft.prediction.prediction import Machine
from weft.prediction.quantity import Estimate
from weft.prediction.serving_errors import ErrorRange, error_ranges
from weft.prediction.simulation import Server, Stage, Visit, serve
from weft.prediction.step_time import StageTime, StepTimer
from weft.prediction.traffic import Traffic
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.speculation import Speculation, check_speculation

_UNSTABLE: Final = 0.9
_MOST_SERVERS: Final = 64


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of all requests in ms: the mean with its 90 % interval, and percentiles."""

    mean: Estimate
    p50: float
    p99: float

    @property
    def value(self) -> float:
        return self.mean.value

    def to_dict(self) -> dict[str, float]:
        return self.mean.to_dict() | {"p50": self.p50, "p99": self.p99}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What the clients of one layout see. Rates are of the whole layout.

    prefill_layout: of servers that only prefill and hand their caches to ``layout``'s.
    running: requests that decode at once at most. busy: part of the time with a step under way;
    prefill_share: part of that with prompts in it. preemptions: requests that lost their cache.
    """

    spec: ModelSpec
    layout: Layout
    traffic: Traffic
    machine: Machine
    prefill_layout: Layout | None
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

    def to_dict(self) -> dict[str, Any]:
        load = self.traffic.workload
        return {
            "schema": "weft.prediction.serving/1",
            "model": self.spec.name,
            "layout": self.layout.name,
            "nodes": self.layout.nodes,
            "prefill_layout": self.prefill_layout and self.prefill_layout.name,
            "workload": {"prompt_tokens": load.prompt_tokens, "decode_tokens": load.decode_tokens},
            "concurrency": self.traffic.concurrency,
            "rate": self.traffic.rate,
            "accelerator": self.machine.accelerator.name,
            "fabric": self.machine.fabric.name,
            "engine": self.machine.profile.name,
            "running": self.running,
            "ttft_ms": self.ttft_ms.to_dict(),
            "tpot_ms": self.tpot_ms.to_dict(),
            "e2e_ms": self.e2e_ms.to_dict(),
            "requests_per_s": self.requests_per_s,
            "tokens_per_s": self.tokens_per_s,
            "busy": self.busy,
            "prefill_share": self.prefill_share,
            "preemptions": self.preemptions,
            "memory": self.memory.to_dict(),
        }


def predict_serving(
    spec: ModelSpec,
    layout: Layout,
    traffic: Traffic,
    machine: Machine,
    *,
    prefill_layout: Layout | None = None,
    speculation: Speculation | None = None,
) -> Serving:
    """Serve ``traffic`` on ``layout``; with ``prefill_layout`` its servers only decode.

    Replicas that do the same are not all simulated. Raises LayoutError and WorkloadError for what
    cannot run, and WorkloadError where requests come faster than they are answered.
    """
    pools = [
        Replica(spec, pool, machine, speculation)
        for pool in (prefill_layout, layout)
        if pool is not None
    ]
    for pool in pools:
        check_question(spec, pool.layout, traffic.workload)
    if speculation is not None:
        check_speculation(spec, speculation)
    scale = math.gcd(*(pool.servers for pool in pools))
    if (most := max(pool.servers for pool in pools) // scale) > _MOST_SERVERS:
        raise WorkloadError(
            f"`dp`: {most} servers that differ are more than the {_MOST_SERVERS} that are simulated; "
            "give both layouts numbers of replicas with a large common divisor"
        )
    stages = [
        pool.stage(scale, after=before) for before, pool in zip((None, *pools), pools, strict=False)
    ]
    for server in stages[0].servers if prefill_layout else ():
        server.prefills_only = True
    visits, clients = traffic.visits(scale), traffic.clients(scale)
    longest = max(visits, key=lambda visit: visit.prompt + visit.decode)
    if traffic.trace is not None and longest.prompt + longest.decode > spec.max_position:
        raise WorkloadError(
            f"`trace` {traffic.trace}: a request of {longest.prompt} + {longest.decode} tokens "
            f"exceeds the {spec.max_position} positions of {spec.name}; leave it out"
        )
    for pool, stage in zip(pools, stages, strict=True):
        try:
            stage.servers[0].check(visits)
        except WorkloadError as error:
            raise WorkloadError(f"layout {pool.layout.name}: {error}") from None
    serve(stages, visits, clients)
    copies = scale if clients is None else (traffic.concurrency or 1) / clients
    per_s = copies / max(visit.end_us for visit in visits) * 1e6
    _check_stable(layout, traffic, visits, len(visits) * per_s)
    return _seen(traffic, pools, stages, visits, per_s)


def _check_stable(layout: Layout, traffic: Traffic, visits: Sequence[Visit], per_s: float) -> None:
    if traffic.rate is None:
        return
    last_half = visits[len(visits) // 2 :]
    waits = fmean(v.ttft_us for v in last_half) / max(fmean(v.ttft_us for v in visits), 1e-9)
    if per_s < _UNSTABLE * traffic.rate and waits > 1.2:
        raise WorkloadError(
            f"`rate` {traffic.rate:g}: {layout.name} answers at most {per_s:.3g} requests a "
            "second; lower `rate`, add replicas (`dp`) or see `weft plan --objective goodput`"
        )


def _seen(
    traffic: Traffic,
    pools: Sequence[Replica],
    stages: Sequence[Stage],
    visits: Sequence[Visit],
    per_s: float,
) -> Serving:
    replica, machine = pools[-1], pools[-1].machine
    servers = stages[-1].servers
    ttft, tpot = error_ranges(machine.profile.name)
    every = [server for stage in stages for server in stage.servers]
    several = [visit for visit in visits if visit.decode > 1] or visits
    busy_us = sum(server.busy_us for server in every)
    copies = replica.servers / len(servers)
    return Serving(
        spec=replica.spec,
        layout=replica.layout,
        traffic=traffic,
        machine=machine,
        prefill_layout=pools[0].layout if len(pools) > 1 else None,
        running=sum(server.most_running for server in servers) * copies,
        ttft_ms=_latency([v.ttft_us for v in visits], ttft),
        tpot_ms=_latency([v.tpot_us for v in several], tpot),
        e2e_ms=_latency([v.end_us - v.arrival_us for v in visits], tpot),
        requests_per_s=len(visits) * per_s,
        tokens_per_s=sum(visit.decode for visit in visits) * per_s,
        busy=busy_us / sum(server.now for server in every),
        prefill_share=sum(server.prompt_us for server in every) / busy_us,
        preemptions=round(sum(server.preemptions for server in every) * copies),
        memory=replica.memory(min(max(s.most_held for s in servers), replica.cache_tokens)),
    )


def _latency(times_us: Sequence[float], error: ErrorRange) -> Latency:
    ordered = sorted(times_us)
    mean_ms = fmean(ordered) * 1e-3
    last = len(ordered) - 1
    return Latency(
        mean=error.around(mean_ms),
        p50=ordered[last // 2] * 1e-3,
        p99=ordered[math.ceil(0.99 * last)] * 1e-3,
    )


class Replica:
    """One server of a layout: what its steps take, and what its caches hold.

    Replicas that share experts are one server: their steps wait for each other.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layout: Layout,
        machine: Machine,
        speculation: Speculation | None = None,
    ) -> None:
        self.spec, self.layout, self.machine = machine.stored(spec), layout, machine
        self.sharing = max(1, layout.ep // layout.tp)
        self.servers = layout.dp // self.sharing
        size = layout.tp * layout.pp * self.sharing
        nodes = max(1, size // layout.ranks_per_node)
        alone = replace(layout, dp=self.sharing, nodes=nodes, gpus_per_node=None)
        self.timer: StepTimer = step_timer(spec, alone, machine, speculation)
        self.cache_tokens = self.memory(1).cache_limit_tokens * self.sharing
        self._known: dict[StepLoad, float] = {}

    def stage(self, scale: int, after: Replica | None) -> Stage:
        """One in ``scale`` of its servers, idle; ``after``: whose caches come to them.

        A client's request reaches the scheduler after the host's time for it, so clients that are
        answered within that time come again together.
        """
        servers = [self._server() for _ in range(self.servers // scale)]
        profile = self.machine.profile
        host_us = profile.request_us.value + profile.server_us.value
        if after is not None:
            return Stage(servers=servers, delay_us=after.transfer_us)
        each_us, token_us = profile.server_prompt_us.value, profile.server_token_us.value
        return Stage(
            servers=servers,
            door_us=lambda _visit: each_us,
            delay_us=lambda visit: host_us + visit.prompt * token_us,
        )

    def transfer_us(self, visit: Visit) -> float:
        """A prompt's cache and states to another server: every rank sends its own over its adapter."""
        fabric, shard = self.machine.fabric, self.timer.shard
        tokens = visit.prompt + self._state_tokens
        width = min(self.layout.ranks_per_node, fabric.gpus_per_node)
        gb_s = fabric.node_bandwidth_gb_s(width) / width
        traffic = tokens * shard.cache_bytes_per_token / self.layout.pp
        return fabric.inter.latency_us + traffic * 1e-3 / gb_s

    def _server(self) -> Server:
        policy = self.machine.profile.policy
        if self.sharing > 1:
            policy = replace(
                policy,
                max_tokens=policy.max_tokens * self.sharing,
                max_requests=policy.max_requests * self.sharing,
            )
        return Server(
            policy=policy,
            step_us=self.step_us,
            cache_tokens=self.cache_tokens,
            state_tokens=self._state_tokens,
            step_tokens=self._step_tokens,
        )

    @cached_property
    def _state_tokens(self) -> int:
        """Positions of cache that have the bytes of one request's states."""
        state = self.spec.state_bytes(range(self.spec.num_layers), self.layout.tp)
        return math.ceil(state / self.timer.shard.cache_bytes_per_token)

    def memory(self, tokens: float) -> Memory:
        """Of one rank where the server's caches hold ``tokens``."""
        return memory_of(
            self.timer.shard,
            tokens=tokens / self.sharing,
            accelerator=self.machine.accelerator,
            profile=self.machine.profile,
            step_rows=self.machine.profile.server_batched_tokens,
        )

    def step_us(self, step: StepLoad) -> float:
        """A step in a server. Sizes are rounded to 1.5 %: what is asked again is remembered."""
        if step.prefill_tokens:
            return self._remembered(
                StepLoad(
                    decode_sequences=_round(step.decode_sequences),
                    decode_context=_round(step.decode_context),
                    prefill_tokens=_round(step.prefill_tokens),
                    prefill_sequences=_round(step.prefill_sequences),
                    prefill_context=_round(step.prefill_context),
                )
            )
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
        profile, step = self.machine.profile, self._of_one(step)
        server = profile.server_step_us.value + step.sequences * profile.server_sequence_us.value
        if step.prefill_tokens:
            server += profile.server_prompt_step_us.value
        return _round_us(self.timer, step, self.layout.pp) + server

    @property
    def _step_tokens(self) -> float:
        drafts = self.timer.speculation
        return 1.0 if drafts is None else 1.0 + drafts.to_dict()["accepted"]

    def _of_one(self, step: StepLoad) -> StepLoad:
        """The step with its drafts, of the busiest of the replicas that share experts."""
        if self.timer.speculation is not None:
            step = replace(step, decode_rows=self.timer.speculation.rows)
        if self.sharing == 1:
            return step
        prompts = step.prefill_sequences
        share = math.ceil(prompts / self.sharing) / prompts if prompts else 0.0
        running = step.decode_sequences
        return StepLoad(
            decode_sequences=max(running / self.sharing, min(running, 1.0)),
            decode_context=step.decode_context,
            prefill_tokens=step.prefill_tokens * share,
            prefill_sequences=prompts * share,
            prefill_context=step.prefill_context,
            everywhere=step.rows,
            decode_rows=step.decode_rows,
        )


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
