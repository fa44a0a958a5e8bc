"""A full server's steady state in a formula: quick enough to search concurrencies with.

While a request decodes its D tokens, each of the n that run is prefilled once, in steps that the
others share: D decode steps of n and n times what a prompt adds to one. The simulation
(weft.prediction.serving) says what clients see of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from weft.prediction.memory import Memory
from weft.prediction.operators import StepLoad
from weft.prediction.prediction import Machine
from weft.prediction.quantity import Estimate
from weft.prediction.serving import Replica
from weft.prediction.serving_errors import error_ranges
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Steady:
    """``concurrency`` requests that run on all replicas; times in ms, rates of the layout.

    held_tokens: positions of one replica's cache.
    """

    concurrency: int
    ttft_ms: Estimate
    tpot_ms: Estimate
    requests_per_s: float
    tokens_per_s: float
    held_tokens: float
    replica: Replica

    @cached_property
    def memory(self) -> Memory:
        return self.replica.memory(self.held_tokens)

    def to_dict(self) -> dict[str, Any]:
        return {
            "concurrency": self.concurrency,
            "ttft_ms": self.ttft_ms.to_dict(),
            "tpot_ms": self.tpot_ms.to_dict(),
            "requests_per_s": self.requests_per_s,
            "tokens_per_s": self.tokens_per_s,
            "memory": self.memory.to_dict(),
        }


class SteadyState:
    """One layout that serves requests of a workload's lengths."""

    def __init__(
        self, spec: ModelSpec, layout: Layout, workload: Workload, machine: Machine
    ) -> None:
        self.layout, self.workload, self.machine = layout, workload, machine
        self.replica = Replica(spec, layout, machine)
        self.policy = machine.profile.policy
        self._errors = error_ranges(machine.profile.name)

    @property
    def most_running(self) -> int:
        """Requests whose cache one replica holds to their last token; 0 where not even one."""
        length = self.workload.prompt_tokens + self.workload.decode_tokens
        stages = self.layout.pp
        return min(self.replica.cache_tokens // length, self.policy.max_requests * stages)

    def at(self, running: int) -> Steady:
        """``running`` requests on every replica."""
        load, profile = self.workload, self.machine.profile
        context = load.prompt_tokens + load.decode_tokens / 2
        decode_us = self.replica.step_us(StepLoad(decode_sequences=running, decode_context=context))
        prompt_us, chunks = self._prompt_us(running - 1, context)
        added_us = max(prompt_us - chunks * decode_us, 0.0) if running > 1 else prompt_us
        steps = max(load.num_decode_steps, 1)
        tpot_us = decode_us + (running - 1) / steps * added_us
        host_us = profile.request_us.value + profile.server_us.value
        ttft_us = host_us + prompt_us + (decode_us / 2 if running > 1 else 0.0)
        per_s = running / (ttft_us + steps * tpot_us) * 1e6 * self.layout.dp
        return Steady(
            concurrency=running * self.layout.dp,
            ttft_ms=self._errors[0].around(ttft_us * 1e-3),
            tpot_ms=self._errors[1].around(tpot_us * 1e-3),
            requests_per_s=per_s,
            tokens_per_s=per_s * load.decode_tokens,
            held_tokens=running * context,
            replica=self.replica,
        )

    def _prompt_us(self, beside: int, context: float) -> tuple[float, int]:
        """One prompt's steps beside decoding requests, and how many they are.

        A chunk's time is linear in what it looks back at, so the first and the last tell of all.
        """
        prompt, mixes = self.workload.prompt_tokens, self.policy.mixes
        chunks = math.ceil(prompt / max(self.policy.prompt_rows(beside), 1))
        ends = [
            self.replica.step_us(
                StepLoad(
                    decode_sequences=beside if mixes else 0.0,
                    decode_context=context if beside and mixes else 0.0,
                    prefill_tokens=prompt / chunks,
                    prefill_sequences=1.0,
                    prefill_context=(index + 0.5) * prompt / chunks,
                )
            )
            for index in {0, chunks - 1}
        ]
        return chunks * sum(ends) / len(ends), chunks if mixes else 0
