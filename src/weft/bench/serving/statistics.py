"""Percentiles and means with 95 % confidence intervals.

Percentile: distribution-free interval between two order statistics, from the exact binomial
distribution of the number of samples below the quantile (David & Nagaraja, Order Statistics,
2003, section 7.1). Mean and weighted figures: percentile bootstrap over requests, because the
gaps of one answer are not independent of each other. Requests are taken as independent; under
a load near saturation they are not, and the true intervals are wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
_RESAMPLES = 500
_NORMAL_ABOVE = 10_000
_Z = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """A figure and its interval; an end is None where the samples cannot bound it."""

    value: float
    low: float | None
    high: float | None


def percentile(samples: Floats, percent: float) -> Percentile:
    """The ``percent``-th percentile (linear interpolation, as numpy's default).

    The interval is widened to hold the value: of few samples, interpolation can leave it.
    """
    ordered = np.sort(samples)
    low, high = order_statistic_ranks(len(ordered), percent / 100)
    value = _linear(ordered, percent / 100)
    return Percentile(
        value=value,
        low=None if low is None else min(value, float(ordered[low])),
        high=None if high is None else max(value, float(ordered[high])),
    )


def _linear(ordered: Floats, quantile: float) -> float:
    """numpy.percentile's value, also where the upper neighbours are infinite."""
    position = quantile * (len(ordered) - 1)
    below = math.floor(position)
    fraction = position - below
    if fraction == 0 or np.isinf(ordered[below]):
        return float(ordered[below])
    return float(ordered[below] + fraction * (ordered[below + 1] - ordered[below]))


def order_statistic_ranks(num_samples: int, quantile: float) -> tuple[int | None, int | None]:
    """0-based ranks (l, u) with P(x[l] <= quantile <= x[u]) >= 95 %; None where no rank does."""
    tail = (1 - CONFIDENCE) / 2
    if num_samples > _NORMAL_ABOVE:
        spread = _Z * math.sqrt(num_samples * quantile * (1 - quantile))
        low = math.floor(num_samples * quantile - spread) - 1
        high = math.ceil(num_samples * quantile + spread)
    else:
        cumulative = _binomial_cdf(num_samples, quantile)
        low = int(np.searchsorted(cumulative, tail, side="right")) - 1
        high = int(np.searchsorted(cumulative, 1 - tail, side="left"))
    return (low if low >= 0 else None, high if high < num_samples else None)


def _binomial_cdf(num_samples: int, quantile: float) -> Floats:
    """P(at most k of ``num_samples`` lie below the quantile), k = 0 … num_samples."""
    k = np.arange(num_samples + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, num_samples + 1)))))
    log_choose = log_factorial[-1] - log_factorial - log_factorial[::-1]
    log_pmf = log_choose + k * math.log(quantile) + (num_samples - k) * math.log1p(-quantile)
    cumulative: Floats = np.minimum(np.cumsum(np.exp(log_pmf)), 1.0)
    return cumulative


def mean(samples: Floats, *, seed: int = 0) -> Percentile:
    """The mean of one value a request, interval by bootstrap over requests."""
    return grouped_mean(samples, np.ones_like(samples), seed=seed)


def grouped_mean(sums: Floats, weights: Floats, *, seed: int = 0) -> Percentile:
    """``sum(sums) / sum(weights)`` over requests, interval by bootstrap over requests."""
    generator = np.random.default_rng(seed)
    num_requests = len(sums)
    values = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        chosen = generator.integers(0, num_requests, num_requests)
        values[index] = sums[chosen].sum() / weights[chosen].sum()
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Percentile(value=float(sums.sum() / weights.sum()), low=float(low), high=float(high))


def grouped_percentiles(
    groups: Sequence[Floats],
    weights: Sequence[Floats] | None,
    percents: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 100,
) -> list[Percentile]:
    """Percentiles of the pooled (weighted) values, interval by bootstrap over the groups."""
    pooled = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    weight = _pooled_weights(groups, weights)
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    order = np.argsort(pooled, kind="stable")
    pooled, weight, owner = pooled[order], weight[order], owner[order]
    quantiles = np.asarray(percents) / 100
    centre = _weighted_quantiles(pooled, weight, quantiles)
    generator = np.random.default_rng(seed)
    draws = np.empty((resamples, len(percents)))
    for index in range(resamples):
        counts = np.bincount(generator.integers(0, len(groups), len(groups)), minlength=len(groups))
        draws[index] = _weighted_quantiles(pooled, weight * counts[owner], quantiles)
    low, high = np.nanquantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return [
        Percentile(value=float(value), low=float(below), high=float(above))
        for value, below, above in zip(centre, low, high, strict=True)
    ]


def _pooled_weights(groups: Sequence[Floats], weights: Sequence[Floats] | None) -> Floats:
    if weights is None:
        return np.ones(sum(len(group) for group in groups))
    return np.concatenate([np.asarray(weight, dtype=np.float64) for weight in weights])


def _weighted_quantiles(ordered: Floats, weights: Floats, quantiles: Floats) -> Floats:
    """Linear interpolation between neighbours; equals numpy.percentile for integer weights."""
    cumulative = np.cumsum(weights)
    position = quantiles * (cumulative[-1] - 1)
    below = np.searchsorted(cumulative, np.floor(position), side="right")
    above = np.searchsorted(cumulative, np.floor(position) + 1, side="right")
    last = len(ordered) - 1
    lower, upper = ordered[np.minimum(below, last)], ordered[np.minimum(above, last)]
    result: Floats = lower + (position - np.floor(position)) * (upper - lower)
    return result
