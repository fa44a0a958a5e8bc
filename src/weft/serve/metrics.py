"""What ``/metrics`` tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from weft.serve.engine_client import EngineClient

_FIRST_TOKEN_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_PER_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_WHOLE_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class _CommunicationShare(Collector):
    """A gauge that has no sample while nothing is measured."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "weft_engine_communication_share",
            "Share of step time in collectives: on the CPU every 64th step is timed, on CUDA "
            "only the steps of a profile (/start_profile); absent until one was",
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        share = self._engine.stats.communication_share
        for family in self.describe():
            if share is not None:
                family.add_metric([], share)
            yield family


class _EngineTokens(Collector):
    """Counters that the engine keeps."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily]:
        stats = self._engine.stats
        for name, value, help_text in (
            ("prefix_asked", stats.prefix_asked, "Tokens of requests when they began to run"),
            ("prefix_hit", stats.prefix_hit, "Those of them that were found in the cache"),
            ("drafted", stats.drafted, "Tokens that were guessed ahead (--speculate)"),
            ("accepted", stats.accepted, "Those of them that the model said too"),
        ):
            yield CounterMetricFamily(f"weft_{name}_tokens", help_text, value)


class Metrics:
    """Counters and histograms of finished requests; gauges of the engine at scrape time."""

    def __init__(self, engine: EngineClient) -> None:
        self.registry = registry = CollectorRegistry()
        self._first = Histogram(
            "weft_time_to_first_token_seconds",
            "Arrival of the request to its first token",
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self._per_token = Histogram(
            "weft_time_per_output_token_seconds",
            "(last token - first token) / (tokens of a choice - 1)",
            buckets=_PER_TOKEN_S,
            registry=registry,
        )
        self._whole = Histogram(
            "weft_request_seconds",
            "Arrival of the request to its last token",
            buckets=_WHOLE_S,
            registry=registry,
        )
        self._requests = Counter(
            "weft_requests", "Requests that ended", ["outcome"], registry=registry
        )
        self._prompt = Counter("weft_prompt_tokens", "Prompt tokens", registry=registry)
        self._output = Counter("weft_output_tokens", "Generated tokens", registry=registry)
        self._gauge("ready", "1 if the engine can serve").set_function(
            lambda: 0.0 if engine.trouble else 1.0
        )
        for name, help_text in (
            ("running", "Requests in the batch"),
            ("waiting", "Requests in the queue"),
            ("steps", "Engine steps so far"),
            ("cache_use", "Share of the key-value cache in use"),
        ):
            self._gauge(name, help_text).set_function(
                lambda name=name: float(getattr(engine.stats, name))  # type: ignore[misc]
            )
        registry.register(_CommunicationShare(engine))
        registry.register(_EngineTokens(engine))

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"weft_engine_{name}", help_text, registry=self.registry)

    def finished(
        self,
        *,
        outcome: str,
        arrived_s: float,
        first_s: float | None,
        num_prompt_tokens: int,
        num_output_tokens: int,
        num_choices: int,
    ) -> None:
        """Book one request; times are ``time.perf_counter`` seconds."""
        now_s = time.perf_counter()
        self._requests.labels(outcome).inc()
        self._prompt.inc(num_prompt_tokens)
        self._output.inc(num_output_tokens)
        if first_s is None:
            return
        self._first.observe(first_s - arrived_s)
        if outcome == "completed":
            self._whole.observe(now_s - arrived_s)
        later = num_output_tokens / num_choices - 1
        if later > 0:
            self._per_token.observe((now_s - first_s) / later)

    def text(self) -> bytes:
        return generate_latest(self.registry)
