"""The result file of ``vllm bench serve --save-result --save-detailed``, from our records.

Field names and meanings follow vLLM 0.32, so that scripts that read its files read ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from weft.bench.serving.definitions import VLLM, RequestTimes
from weft.bench.serving.figures import PERCENTS, ServiceLimits, figures
from weft.bench.serving.payloads import Api, Target
from weft.bench.serving.records import RequestRecord
from weft.bench.serving.runner import Load, RunOutcome


def to_vllm_json(
    target: Target,
    load: Load,
    outcome: RunOutcome,
    limits: ServiceLimits,
    *,
    rate_per_s: float | None = None,
    burstiness: float = 1.0,
) -> dict[str, Any]:
    """One JSON object; milliseconds in the summary, seconds in the lists, as vLLM has them."""
    records = outcome.records
    times = [VLLM.measure(record) if record.completed else None for record in records]
    return {
        "date": datetime.now().astimezone().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "openai-chat" if target.api is Api.CHAT else "openai",
        "backend": "openai-chat" if target.api is Api.CHAT else "openai",
        "label": None,
        "model_id": target.model,
        "tokenizer_id": target.model,
        "num_prompts": len(records),
        "request_rate": "inf" if rate_per_s is None else rate_per_s,
        "burstiness": burstiness,
        "max_concurrency": load.concurrency,
        **_totals(records, outcome, limits),
        **_lists(records, times),
        **_peaks(records, times),
        **_summary([one for one in times if one is not None]),
    }


def _totals(
    records: Sequence[RequestRecord], outcome: RunOutcome, limits: ServiceLimits
) -> dict[str, Any]:
    done = [record for record in records if record.completed]
    duration_s = max(outcome.duration_s, 1e-9)
    prompt = sum(record.prompt_tokens or record.spec.prompt_tokens for record in done)
    output = sum(record.num_output_tokens for record in done)
    goodput = figures(records, VLLM, limits, duration_s).get("goodput")
    return {
        "duration": outcome.duration_s,
        "completed": len(done),
        "failed": len(records) - len(done),
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "request_throughput": len(done) / duration_s,
        "request_goodput": goodput["requests_per_s"] if goodput else None,
        "output_throughput": output / duration_s,
        "total_token_throughput": (prompt + output) / duration_s,
    }


def _lists(
    records: Sequence[RequestRecord], times: Sequence[RequestTimes | None]
) -> dict[str, Any]:
    return {
        "input_lens": [record.prompt_tokens or record.spec.prompt_tokens for record in records],
        "output_lens": [record.num_output_tokens if record.completed else 0 for record in records],
        "ttfts": [one.ttft_s if one else 0.0 for one in times],
        "itls": [list(one.itl_s) if one else [] for one in times],
        "latencies": [one.e2e_s if one else 0.0 for one in times],
        "start_times": [record.sent_s for record in records],
        "queue_times": [record.sent_s - record.scheduled_s for record in records],
        "errors": [record.error or "" for record in records],
    }


def _peaks(
    records: Sequence[RequestRecord], times: Sequence[RequestTimes | None]
) -> dict[str, Any]:
    """Busiest second in chunks, and most requests open in any one second."""
    done = [(record, one) for record, one in zip(records, times, strict=True) if one]
    if not done:
        return {"max_output_tokens_per_s": 0.0, "max_concurrent_requests": 0}
    first_s = min(record.sent_s for record, _ in done)
    seconds = math.ceil(max(record.sent_s + one.e2e_s for record, one in done) - first_s) + 1
    chunks, running = np.zeros(seconds), np.zeros(seconds, int)
    for record, one in done:
        np.add.at(chunks, (np.asarray(record.chunk_s) - first_s).astype(int), 1)
        start_s = record.sent_s - first_s
        running[int(start_s) : int(start_s + one.e2e_s) + 1] += 1
    return {
        "max_output_tokens_per_s": float(chunks.max()),
        "max_concurrent_requests": int(running.max()),
    }


def _summary(times: Sequence[RequestTimes]) -> dict[str, float]:
    values = {
        "ttft": [one.ttft_s for one in times],
        "tpot": [one.tpot_s for one in times if one.tpot_s is not None],
        "itl": [gap for one in times for gap in one.itl_s],
        "e2el": [one.e2e_s for one in times],
    }
    summary: dict[str, float] = {}
    for name, seconds in values.items():
        samples = np.array(seconds or [0.0]) * 1e3
        summary[f"mean_{name}_ms"] = float(samples.mean())
        summary[f"median_{name}_ms"] = float(np.median(samples))
        summary[f"std_{name}_ms"] = float(samples.std())
        for percent in PERCENTS:
            summary[f"p{percent:g}_{name}_ms"] = float(np.percentile(samples, percent))
    return summary
