"""What makes a layout better: latency of one batch, throughput, or goodput under limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from weft.errors import WorkloadError
from weft.prediction.latency import predict_latency
from weft.prediction.prediction import Machine, Prediction
from weft.prediction.serving import Serving, predict_serving
from weft.prediction.steady import Steady, SteadyState
from weft.prediction.traffic import Traffic
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
    serving: Steady | Serving | None
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
        load = self.workload
        if self.objective is not Objective.LATENCY:
            load = replace(load, batch=layout.dp)
        prediction = predict_latency(self.spec, layout, load, self.machine)
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
        """Candidates at powers of four and at the most requests that the limits allow."""
        server = SteadyState(self.spec, layout, self.workload, self.machine)
        most = server.most_running
        length = self.workload.prompt_tokens + self.workload.decode_tokens
        if most < 1:
            held = server.replica.cache_tokens
            return Refusal(reason=f"the cache holds {held} tokens, one request needs {length}")
        refusal = self._broken(server.at(1))
        if refusal:
            text = f"{refusal.reason} with {layout.dp} request{'s' * (layout.dp > 1)} at once"
            return replace(refusal, reason=text)
        best = self._most_within(server, most)
        counts = sorted({best, *(4**step for step in range((best.bit_length() + 1) // 2))})
        found = [self._candidate(layout, prediction, server.at(count)) for count in counts]
        return sorted(found, key=lambda item: item.score)

    def _broken(self, steady: Steady | Serving) -> Refusal | None:
        return self.limits.broken_by(steady.ttft_ms.value, steady.tpot_ms.value)

    def _most_within(self, server: SteadyState, most: int) -> int:
        """The largest number of requests a replica that keeps the limits; one does."""
        low, high = 1, most + 1
        if not self._broken(server.at(most)):
            return most
        while high - low > 1:
            middle = (low + high) // 2
            if self._broken(server.at(middle)):
                high = middle
            else:
                low = middle
        return low

    def confirmed(self, candidate: Candidate) -> Candidate | Refusal:
        """The candidate as its clients see it by simulation, with fewer of them if need be."""
        if candidate.serving is None:
            return candidate
        dp, clients = candidate.layout.dp, candidate.concurrency
        while True:
            traffic = Traffic(
                workload=self.workload, concurrency=clients, requests=_requests(clients // dp)
            )
            found = predict_serving(self.spec, candidate.layout, traffic, self.machine)
            broken = self._broken(found)
            if not broken:
                return self._candidate(candidate.layout, candidate.prediction, found, clients)
            if clients <= dp:
                return replace(broken, reason=f"{broken.reason} with {clients} clients")
            clients = max(dp, int(clients / max(broken.excess, 1.05)) // dp * dp)

    def _candidate(
        self,
        layout: Layout,
        prediction: Prediction,
        serving: Steady | Serving,
        clients: int | None = None,
    ) -> Candidate:
        rate = serving.tokens_per_s
        if self.objective is Objective.GOODPUT:
            rate = serving.requests_per_s
        concurrency = serving.concurrency if isinstance(serving, Steady) else clients
        assert concurrency is not None
        return Candidate(
            layout=layout,
            concurrency=concurrency,
            prediction=prediction,
            serving=serving,
            score=1 / rate,
        )


def _requests(clients: int) -> int:
    """The first burst of every client, and what follows it for a part of them."""
    return max(clients + clients // 4, 40)
