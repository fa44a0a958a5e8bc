"""One run's records under one definition: figures with intervals, goodput, failures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from weft.bench.serving.definitions import Definition, RequestTimes
from weft.bench.serving.records import RequestRecord
from weft.bench.serving.statistics import (
    Floats,
    Percentile,
    grouped_mean,
    grouped_percentiles,
    mean,
    percentile,
)
from weft.errors import UserError

PERCENTS = (50.0, 90.0, 95.0, 99.0)
METRICS = ("ttft", "tpot", "itl", "e2e")


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """The service level: milliseconds a request may take at most; None is no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    @property
    def given(self) -> bool:
        return any(value is not None for value in asdict(self).values())


def parse_limits(text: str) -> ServiceLimits:
    """``ttft:200,tpot:50,e2e:2000`` in milliseconds; UserError names what is wrong."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition(":")
        if name not in {"ttft", "tpot", "e2e"}:
            raise UserError(f"`goodput` {part}: name one of ttft, tpot, e2e, e.g. ttft:200,tpot:50")
        try:
            values[f"{name}_ms"] = float(number)
        except ValueError:
            raise UserError(f"`goodput` {part}: write milliseconds, e.g. {name}:200") from None
        if not 0 < values[f"{name}_ms"] < math.inf:
            raise UserError(f"`goodput` {part}: the limit must be above 0 ms")
    return ServiceLimits(**values)


def figures(
    records: Sequence[RequestRecord],
    definition: Definition,
    limits: ServiceLimits,
    duration_s: float,
) -> dict[str, Any]:
    """The JSON object of one definition: what it states, its figures (ms) and its goodput."""
    measured = [definition.measure(record) if record.completed else None for record in records]
    times = [one for one in measured if one is not None]
    num_failed = len(records) - len(times)
    result: dict[str, Any] = {"stated": definition.stated, "num_measured": len(times)}
    for metric in METRICS:
        result[f"{metric}_ms"] = _metric(times, metric) if times else None
    if times:
        result["with_failures_as_infinite"] = {
            metric: _with_failures(times, metric, num_failed) for metric in ("ttft", "e2e")
        }
    if limits.given:
        result["goodput"] = _goodput(times, definition, limits, num_failed, duration_s)
    return result


def _metric(times: Sequence[RequestTimes], metric: str) -> dict[str, Any] | None:
    if metric == "itl":
        return _pooled(times)
    values = _milliseconds(times, metric)
    if not len(values):
        return None
    summary: dict[str, Any] = {"count": len(values), "mean": asdict(mean(values))}
    for percent in PERCENTS:
        summary[_name(percent)] = asdict(percentile(values, percent))
    return summary | _spread(values)


def _milliseconds(times: Sequence[RequestTimes], metric: str) -> Floats:
    values = [getattr(one, f"{metric}_s") for one in times]
    return np.array([value * 1e3 for value in values if value is not None])


def _pooled(times: Sequence[RequestTimes]) -> dict[str, Any] | None:
    used = [one for one in times if len(one.itl_s)]
    if not used:
        return None
    groups = [np.asarray(one.itl_s) * 1e3 for one in used]
    weights = [np.asarray(one.itl_weights or np.ones(len(one.itl_s)), float) for one in used]
    sums = np.array([(group * weight).sum() for group, weight in zip(groups, weights, strict=True)])
    totals = np.array([weight.sum() for weight in weights])
    estimates = grouped_percentiles(groups, weights, PERCENTS)
    named: dict[str, Percentile] = dict(zip(map(_name, PERCENTS), estimates, strict=True))
    summary = {
        "count": int(sum(map(len, groups))),
        "mean": asdict(grouped_mean(sums, totals)),
        **{name: asdict(estimate) for name, estimate in named.items()},
    }
    return summary | _spread(np.concatenate(groups))


def _spread(values: Floats) -> dict[str, float]:
    return {"std": float(values.std()), "min": float(values.min()), "max": float(values.max())}


def _with_failures(
    times: Sequence[RequestTimes], metric: str, num_failed: int
) -> dict[str, float | None]:
    """Percentiles with each failed request as infinitely late; None is infinite."""
    values = np.concatenate([_milliseconds(times, metric), np.full(num_failed, np.inf)])
    estimates = {_name(percent): percentile(values, percent).value for percent in PERCENTS}
    return {name: value if np.isfinite(value) else None for name, value in estimates.items()}


def _goodput(
    times: Sequence[RequestTimes],
    definition: Definition,
    limits: ServiceLimits,
    num_failed: int,
    duration_s: float,
) -> dict[str, Any]:
    verdicts = [_within(one, definition, limits) for one in times]
    judged = [verdict for verdict in verdicts if verdict is not None]
    num_good = sum(judged)
    population = len(judged) + (num_failed if definition.goodput_counts_failures else 0)
    return {
        "limits_ms": {name: value for name, value in asdict(limits).items() if value is not None},
        "num_good": num_good,
        "num_judged": population,
        "share": num_good / population if population else None,
        "requests_per_s": num_good / duration_s if duration_s > 0 else None,
    }


def _within(one: RequestTimes, definition: Definition, limits: ServiceLimits) -> bool | None:
    """Whether the request met every limit; None where the definition leaves it out."""
    if limits.tpot_ms is not None and (one.tpot_s is None or not len(one.itl_s)):
        if definition.undefined_tpot == "left out":
            return None
        if definition.undefined_tpot == "fails":
            return False
    pairs = (
        (one.ttft_s, limits.ttft_ms),
        (one.tpot_s, limits.tpot_ms),
        (one.e2e_s, limits.e2e_ms),
    )
    return all(
        value * 1e3 <= limit for value, limit in pairs if limit is not None and value is not None
    )


def _name(percent: float) -> str:
    return f"p{percent:g}"
