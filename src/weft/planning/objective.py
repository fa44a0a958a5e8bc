"""What makes a layout better: latency of one batch, throughput, or goodput under limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from weft.errors import WorkloadError
from weft.prediction.latency import predict_latency
from weft.prediction.prediction import Machine, Prediction
from weft.prediction.serving import Serving, serve_at_concurrency
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.workload import Workload


class Objective(StrEnum):
    """The value of ``--objective``.

    latency: end-to-end time of the workload's batch, lower is better. throughput:
    generated tokens a second at the best concurrency. goodput: requests a second within
    the limits on TTFT and TPOT.
    """

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    GOODPUT = "goodput"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a layout is no answer; ``excess`` as in :class:`weft.planning.space.Rejection`."""

    reason: str
    excess: float = 0.0


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper limits in ms; None is no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("`ttft_ms`", self.ttft_ms), ("`tpot_ms`", self.tpot_ms)):
            if value is not None and not value > 0:
                raise WorkloadError(f"{option} {value}: must be above 0 ms")

    def broken_by(self, ttft_ms: float, tpot_ms: float) -> Refusal | None:
        """The first limit that the times exceed, with the numbers."""
        for name, value, limit in (
            ("TTFT", ttft_ms, self.ttft_ms),
            ("TPOT", tpot_ms, self.tpot_ms),
        ):
            if limit is not None and value > limit:
                reason = f"{name} {_ms(value)} ms is above the limit of {_ms(limit)} ms"
                return Refusal(reason=reason, excess=value / limit)
        return None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One layout that fits, with what it does at ``concurrency`` requests.

    score: lower is better; ms for latency, otherwise the time a token or request takes of
    the whole machine. serving is None for the latency objective.
    """

    layout: Layout
    concurrency: int
    prediction: Prediction
    serving: Serving | None
    score: float

    @property
    def ttft_ms(self) -> float:
        return self.serving.ttft_ms.value if self.serving else self.prediction.ttft_ms.value

    @property
    def tpot_ms(self) -> float:
        return self.serving.tpot_ms.value if self.serving else self.prediction.tpot_ms.value

    @property
    def e2e_ms(self) -> float:
        """Of one request in a server, of the whole batch otherwise."""
        if self.serving is None:
            return self.prediction.e2e_ms.value
        return self.ttft_ms + self.prediction.workload.num_decode_steps * self.tpot_ms

    @property
    def tokens_per_s(self) -> float:
        return self.serving.tokens_per_s if self.serving else self.prediction.tokens_per_s.value


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every layout."""

    spec: ModelSpec
    workload: Workload
    machine: Machine
    objective: Objective = Objective.LATENCY
    limits: Limits = Limits()

    def answer(self, layout: Layout) -> list[Candidate] | Refusal:
        """The layout's candidates (one a concurrency), best first, or why it has none."""
        prediction = predict_latency(self.spec, layout, self.workload, self.machine)
        if not prediction.memory.fits:
            return Refusal(reason=prediction.memory.shortage)
        if self.objective is Objective.LATENCY:
            return self._latency(layout, prediction)
        return self._serving(layout, prediction)

    def _latency(self, layout: Layout, prediction: Prediction) -> list[Candidate] | Refusal:
        times = prediction.ttft_ms.value, prediction.tpot_ms.value
        broken = self.limits.broken_by(*times)
        if broken:
            return broken
        return [
            Candidate(
                layout=layout,
                concurrency=self.workload.batch,
                prediction=prediction,
                serving=None,
                score=prediction.e2e_ms.value,
            )
        ]

    def _serving(self, layout: Layout, prediction: Prediction) -> list[Candidate] | Refusal:
        found: list[Candidate] = []
        broken = Refusal(reason="")
        for concurrency in self._concurrencies(layout, prediction):
            load = Workload(
                prompt_tokens=self.workload.prompt_tokens,
                decode_tokens=self.workload.decode_tokens,
                batch=concurrency,
            )
            try:
                serving = serve_at_concurrency(self.spec, layout, load, self.machine)
            except WorkloadError as error:
                return Refusal(reason=str(error))
            refusal = self.limits.broken_by(serving.ttft_ms.value, serving.tpot_ms.value)
            if refusal:
                requests = f"{concurrency} request" + ("s" if concurrency > 1 else "")
                text = f"{refusal.reason} with {requests} at once"
                broken = replace(refusal, reason=text)
                break
            found.append(self._candidate(layout, prediction, serving, concurrency))
        return sorted(found, key=lambda item: item.score) or broken

    def _concurrencies(self, layout: Layout, prediction: Prediction) -> list[int]:
        """One request a replica, doubled until the cache is full."""
        tokens = self.workload.prompt_tokens + self.workload.decode_tokens
        most = max(1, prediction.memory.cache_limit_tokens // tokens)
        steps = int(math.log2(min(most, 1024)))
        return [layout.dp * 2**step for step in range(steps + 1)]

    def _candidate(
        self, layout: Layout, prediction: Prediction, serving: Serving, concurrency: int
    ) -> Candidate:
        rate = serving.tokens_per_s
        if self.objective is Objective.GOODPUT:
            rate = serving.requests_per_s
        return Candidate(
            layout=layout,
            concurrency=concurrency,
            prediction=prediction,
            serving=serving,
            score=1 / rate,
        )
