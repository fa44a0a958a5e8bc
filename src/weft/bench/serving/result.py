"""The result of one run as JSON, schema ``weft.bench.serve/1``."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from weft import __version__
from weft.bench.serving.communication import PROFILE_SCHEMA, communication
from weft.bench.serving.definitions import DEFINITIONS
from weft.bench.serving.figures import ServiceLimits, figures
from weft.bench.serving.payloads import Target
from weft.bench.serving.records import RequestRecord
from weft.bench.serving.runner import Load, RunOutcome

SCHEMA = "weft.bench.serve/1"


@dataclass(frozen=True, kw_only=True)
class ServeResult:
    """One load as it was sent and answered; ``profile`` is what the server timed meanwhile."""

    target: Target
    load: Load
    outcome: RunOutcome
    limits: ServiceLimits
    settings: Mapping[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] | None = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def to_dict(self, *, with_records: bool = False) -> dict[str, Any]:
        """Everything that the run showed; times in milliseconds unless the name says otherwise."""
        outcome, profile = self.outcome, self.profile
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "created": self.created,
            "weft_version": __version__,
            "target": _target(self.target),
            "load": dict(self.settings),
            "duration_s": outcome.duration_s,
            "requests": _requests(outcome.records, len(self.load.specs)),
            "tokens": _tokens(outcome.records),
            "throughput": _throughput(outcome),
            "client": _client(outcome),
            "definitions": {
                name: figures(outcome.records, definition, self.limits, outcome.duration_s)
                for name, definition in DEFINITIONS.items()
            },
        }
        if profile is not None and profile.get("schema") == PROFILE_SCHEMA:
            document["communication"] = communication(profile, outcome.records)
        if with_records:
            document["records"] = [_record(one, outcome.start_s) for one in outcome.records]
        return document


def _target(target: Target) -> dict[str, Any]:
    endpoint = target.endpoint
    return {
        "url": f"{endpoint.scheme}://{endpoint.authority}{endpoint.prefix}",
        "model": target.model,
        "api": target.api.value,
        "temperature": target.temperature,
        "ignore_eos": target.ignore_eos,
        "continuous_usage": target.continuous_usage,
    }


def _requests(records: Sequence[RequestRecord], planned: int) -> dict[str, Any]:
    failed = [record for record in records if not record.completed]
    return {
        "planned": planned,
        "offered": len(records),
        "completed": len(records) - len(failed),
        "failed": len(failed),
        "errors": dict(Counter(record.error for record in failed).most_common(20)),
        "statuses": dict(sorted(Counter(str(record.status) for record in records).items())),
    }


def _tokens(records: Sequence[RequestRecord]) -> dict[str, Any]:
    done = [record for record in records if record.completed]
    continuous = sum(1 for record in done if record.chunk_tokens and min(record.chunk_tokens) >= 0)
    return {
        "prompt": sum(record.prompt_tokens or record.spec.prompt_tokens for record in done),
        "output": sum(record.num_output_tokens for record in done),
        "counted_by_server_with_every_chunk": continuous,
        "counted_by_server_at_the_end": sum(record.counted_by_server for record in done),
        "completed": len(done),
    }


def _throughput(outcome: RunOutcome) -> dict[str, float | None]:
    tokens, duration_s = _tokens(outcome.records), outcome.duration_s

    def rate(count: int) -> float | None:
        return count / duration_s if duration_s > 0 else None

    return {
        "requests_per_s": rate(tokens["completed"]),
        "offered_requests_per_s": rate(len(outcome.records)),
        "output_tokens_per_s": rate(tokens["output"]),
        "total_tokens_per_s": rate(tokens["output"] + tokens["prompt"]),
    }


def _client(outcome: RunOutcome) -> dict[str, Any]:
    lag_s = [record.sent_s - record.ready_s for record in outcome.records if record.sent_s]
    waited_s = [record.ready_s - record.scheduled_s for record in outcome.records]
    count = max(len(outcome.records), 1)
    return {
        "cpu_s": outcome.cpu_s,
        "cpu_us_per_request": outcome.cpu_s / count * 1e6,
        "cpu_share_of_a_core": outcome.cpu_s / outcome.duration_s if outcome.duration_s else None,
        "send_lag_ms": _lag(lag_s),
        "waited_for_concurrency_ms": _lag(waited_s),
        "event_loop_lag_ms": _lag(outcome.loop_lag_s),
        "event_loop": outcome.event_loop,
        "python": platform.python_version(),
        "host": {"machine": platform.machine(), "system": platform.system()},
    }


def _lag(values_s: Sequence[float]) -> dict[str, float] | None:
    if not len(values_s):
        return None
    values = np.asarray(values_s) * 1e3
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "max": float(values.max())}


def _record(record: RequestRecord, start_s: float) -> dict[str, Any]:
    return {
        "index": record.index,
        "scheduled_s": record.scheduled_s - start_s,
        "sent_s": record.sent_s - start_s,
        "end_s": record.end_s - start_s,
        "status": record.status,
        "error": record.error,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "chunk_ms": [round((at_s - record.sent_s) * 1e3, 4) for at_s in record.chunk_s],
        "chunk_tokens": list(record.chunk_tokens),
        "chunk_content": list(map(bool, record.chunk_content)),
    }
