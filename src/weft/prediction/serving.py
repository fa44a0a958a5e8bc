"""A server under load: continuous batching with chunked prefill, in the steady state.

While a request decodes its ``n`` tokens, each of the others that run beside it is
prefilled once; those prefills share steps with its tokens and lengthen them. Waiting
for other prompts follows M/D/1. What the cache cannot hold waits (Little's law): before its
first token, or preempted after it, since engines admit by present lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from weft.errors import WorkloadError
from weft.prediction.latency import check_question, step_timer
from weft.prediction.memory import Memory, memory_of
from weft.prediction.operators import Step
from weft.prediction.pipeline import decode_period
from weft.prediction.prediction import Machine
from weft.prediction.quantity import Estimate
from weft.prediction.step_time import StageTime, StepTimer
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.workload import Workload

_FULLEST: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Steady state of one layout at a concurrency. Times in ms, rates of the whole layout.

    running: requests that decode at once (all replicas); less than ``concurrency`` where
    the cache is full and the rest queue. prompt_ms: what one prompt adds to the others'
    steps. prefill_share: part of the time that steps spend on prompts.
    """

    concurrency: float
    running: float
    ttft_ms: Estimate
    tpot_ms: Estimate
    requests_per_s: float
    tokens_per_s: float
    prompt_ms: float
    prefill_share: float
    memory: Memory

    def to_json(self) -> dict[str, Any]:
        return {
            "concurrency": self.concurrency,
            "running": self.running,
            "ttft_ms": self.ttft_ms.to_json(),
            "tpot_ms": self.tpot_ms.to_json(),
            "requests_per_s": self.requests_per_s,
            "tokens_per_s": self.tokens_per_s,
            "prompt_ms": self.prompt_ms,
            "prefill_share": self.prefill_share,
            "memory": self.memory.to_json(),
        }


def serve_at_concurrency(
    spec: ModelSpec, layout: Layout, workload: Workload, machine: Machine
) -> Serving:
    """``workload.batch`` clients that each send a request as soon as the last is answered.

    Raises WorkloadError where the cache does not hold one request.
    """
    check_question(spec, layout, workload)
    return _Server(spec, layout, workload, machine).steady_state(workload.batch / layout.dp)


def serve_at_rate(
    spec: ModelSpec, layout: Layout, workload: Workload, machine: Machine, rate: float
) -> Serving | None:
    """Open arrivals of ``rate`` requests a second; None where the layout cannot keep up."""
    if not rate > 0:
        raise WorkloadError(f"--rate {rate}: must be above 0 requests a second")
    check_question(spec, layout, workload)
    server = _Server(spec, layout, workload, machine)
    low, high = 0.0, server.most_running
    if server.steady_state(high).requests_per_s < rate:
        return None
    for _ in range(30):
        middle = (low + high) / 2
        if server.steady_state(middle).requests_per_s < rate:
            low = middle
        else:
            high = middle
    return server.steady_state(high)


def most_requests_per_s(
    spec: ModelSpec, layout: Layout, workload: Workload, machine: Machine
) -> float:
    """Requests a second that the layout answers with its cache full."""
    check_question(spec, layout, workload)
    server = _Server(spec, layout, workload, machine)
    return server.steady_state(server.most_running).requests_per_s


class _Server:
    """One layout that serves; concurrency is counted a replica in here."""

    def __init__(
        self, spec: ModelSpec, layout: Layout, workload: Workload, machine: Machine
    ) -> None:
        self.spec, self.layout, self.workload, self.machine = spec, layout, workload, machine
        self.timer: StepTimer = step_timer(spec, layout, machine)
        self.budget = machine.profile.max_batched_tokens
        self.memory = self._memory(1)
        longest = workload.prompt_tokens + workload.decode_tokens
        if self.memory.cache_limit_tokens < longest:
            raise WorkloadError(
                f"layout {layout.name}: the cache holds {self.memory.cache_limit_tokens} tokens, "
                f"one request needs {longest}; use more GPUs a replica (--tp, --pp)"
            )

    @property
    def mean_context(self) -> float:
        return self.workload.prompt_tokens + self.workload.decode_tokens / 2

    @property
    def most_running(self) -> float:
        """Requests whose cache fits at once; a token budget bounds them too."""
        room = self.memory.cache_limit_tokens / self.mean_context
        return max(1.0, min(room, self.budget / 2))

    def _memory(self, running: float) -> Memory:
        return memory_of(
            self.spec,
            self.layout,
            tokens=running * (self.workload.prompt_tokens + self.workload.decode_tokens / 2),
            accelerator=self.machine.accelerator,
            profile=self.machine.profile,
            weight_dtype=self.machine.weight_dtype or self.spec.dtype,
            step_rows=self.budget,
        )

    def steady_state(self, concurrency: float) -> Serving:
        running = min(concurrency, self.most_running)
        others = max(running - 1, 0.0)
        tokens, dp = self.workload.decode_tokens, self.layout.dp
        decode_us = self._decode_us(running)
        added_us, own_us = self._prefill_us(running, decode_us)
        host_us = self.machine.profile.request_us.value + self.machine.profile.server_us.value
        step_us = decode_us + self._server_us(running)
        tpot_us = step_us + others / tokens * added_us
        first_us = host_us + own_us + step_us / 2 * others / running
        rate = running / (first_us + tpot_us * max(tokens - 1, 1))
        share = min(rate * added_us, _FULLEST)
        queue_us = max(concurrency - running, 0.0) / rate
        preempted_us = self._preempted_share() * queue_us
        return Serving(
            concurrency=concurrency * dp,
            running=running * dp,
            ttft_ms=self._ttft(
                first_us + _wait_us(share * others / running, added_us) + queue_us - preempted_us
            ),
            tpot_ms=self._tpot(tpot_us + preempted_us / max(tokens - 1, 1)),
            requests_per_s=rate * 1e6 * dp,
            tokens_per_s=rate * 1e6 * tokens * dp,
            prompt_ms=added_us * 1e-3,
            prefill_share=share,
            memory=self._memory(running),
        )

    def _ttft(self, time_us: float) -> Estimate:
        return _around(time_us, self.machine.profile.server_ttft_spread.value)

    def _tpot(self, time_us: float) -> Estimate:
        return _around(time_us, self.machine.profile.server_tpot_spread.value)

    def _preempted_share(self) -> float:
        """Part of the waiting that falls after the first token; more, the more a request grows.

        Between one half and one: half of it for prompts that hardly grow, as the saturated
        rows of the H100 serving data show.
        """
        load = self.workload
        return (1 + load.decode_tokens / (load.prompt_tokens + load.decode_tokens)) / 2

    def _decode_us(self, running: float) -> float:
        return decode_period(running, self.layout.pp, self._decode_stages).time_us

    def _server_us(self, running: float) -> float:
        """What a step and its answers take more in a server."""
        profile = self.machine.profile
        return profile.server_step_us.value + running * profile.server_sequence_us.value

    def _decode_stages(self, sequences: float) -> list[StageTime]:
        return self.timer.stages(Step(decode_sequences=sequences, decode_context=self.mean_context))

    def _prefill_us(self, running: float, decode_us: float) -> tuple[float, float]:
        """What one prompt adds to the others' steps, and how long its own prefill takes.

        The prompt goes in chunks that fill the token budget beside the decoding sequences.
        """
        beside = max(running - 1, 0.0) / self.layout.pp
        prompt = self.workload.prompt_tokens
        num_chunks = math.ceil(prompt / max(self.budget - beside, 1.0))
        chunk = prompt / num_chunks
        busiest, path = 0.0, 0.0
        for index in range(num_chunks):
            stages = self.timer.stages(
                Step(
                    decode_sequences=beside,
                    decode_context=self.mean_context if beside else 0.0,
                    prefill_tokens=chunk,
                    prefill_sequences=1.0,
                    prefill_context=(index + 0.5) * chunk,
                )
            )
            busiest += max(stage.busy_us for stage in stages)
            path += sum(stage.busy_us + stage.hop_us for stage in stages)
        alone = decode_us / self.layout.pp if running > 1 else 0.0
        return max(busiest - num_chunks * alone, 0.0), path


def _wait_us(share_ahead: float, service_us: float) -> float:
    """Mean wait of M/D/1 for others' prompts that take ``share_ahead`` of the time."""
    return share_ahead * service_us / (2 * (1 - share_ahead))


def _around(time_us: float, spread: float) -> Estimate:
    return Estimate.around(time_us * 1e-3, time_us * 1e-3 * spread)
