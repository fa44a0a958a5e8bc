"""When requests come: as slots free up (closed loop), at random (Poisson, gamma), or replayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from weft.bench.serving.records import RequestSpec
from weft.errors import WorkloadError

_MOST: Final = 1_000_000


def synthetic(num_requests: int, prompt_tokens: int, output_tokens: int) -> list[RequestSpec]:
    """``num_requests`` equal requests without times."""
    for option, value in (
        ("`num_requests`", num_requests),
        ("`prompt_tokens`", prompt_tokens),
        ("`output_tokens`", output_tokens),
    ):
        if not 1 <= value <= _MOST:
            raise WorkloadError(f"{option} {value}: must be 1 to {_MOST}")
    spec = RequestSpec(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    return [spec] * num_requests


def at_random(
    specs: Sequence[RequestSpec], rate_per_s: float, burstiness: float = 1.0, seed: int = 0
) -> list[RequestSpec]:
    """The same requests with gamma-distributed gaps of mean 1/rate.

    ``burstiness`` is the shape of the distribution: 1 is a Poisson process, less is burstier,
    more is steadier (the squared coefficient of variation of the gaps is 1/burstiness).
    """
    if not 0 < rate_per_s < math.inf:
        raise WorkloadError(f"`rate` {rate_per_s:g}: must be above 0 requests per second")
    if not 0 < burstiness < math.inf:
        raise WorkloadError(f"`burstiness` {burstiness:g}: must be above 0 (1 is Poisson)")
    generator = np.random.default_rng(seed)
    gaps = generator.gamma(burstiness, 1 / (rate_per_s * burstiness), len(specs))
    times = np.cumsum(gaps) - gaps[0]
    return [replace(spec, at_s=float(at)) for spec, at in zip(specs, times, strict=True)]


def replayed(
    specs: Sequence[RequestSpec], speed: float, num_requests: int | None
) -> list[RequestSpec]:
    """A trace from its first request on, ``speed`` times as fast, cut to ``num_requests``."""
    if not 0 < speed < math.inf:
        raise WorkloadError(f"`trace_speed` {speed:g}: must be above 0")
    chosen = sorted(specs, key=lambda spec: spec.at_s or 0.0)[:num_requests]
    start = chosen[0].at_s or 0.0
    return [replace(spec, at_s=((spec.at_s or 0.0) - start) / speed) for spec in chosen]
