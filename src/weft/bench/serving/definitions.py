"""TTFT, TPOT, ITL, E2E and goodput by definition: four tools' and weft's, side by side.

The tools of the field mean different things by the same letters. Here every definition is
written out in words (``stated``, printed with every result) and in code (``measure``), and
one run is read under all of them, so that figures are only compared under one definition.

Symbols: t0 start; chunk = event with choices; n = output tokens by the server's count;
t1, tN = first and last chunk that the definition counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from weft.bench.serving.records import RequestRecord


@dataclass(frozen=True, kw_only=True)
class RequestTimes:
    """One completed request under one definition; seconds. None: not defined for it."""

    ttft_s: float
    e2e_s: float
    tpot_s: float | None
    itl_s: Sequence[float]
    itl_weights: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One tool's meaning of the figures."""

    name: str
    stated: dict[str, str]
    measure: Callable[[RequestRecord], RequestTimes | None]
    undefined_tpot: Literal["passes", "fails", "left out"]
    """What a TPOT limit says of an answer of one token."""
    goodput_counts_failures: bool


def _vllm(record: RequestRecord) -> RequestTimes | None:
    times = record.chunk_s
    if not times:
        return None
    ttft_s, e2e_s = times[0] - record.sent_s, times[-1] - record.sent_s
    return RequestTimes(
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        tpot_s=_ratio(e2e_s - ttft_s, record.num_output_tokens - 1),
        itl_s=_gaps(times),
    )


def _aiperf(record: RequestRecord) -> RequestTimes | None:
    times = _content_times(record)
    if not times:
        return None
    ttft_s, e2e_s = times[0] - record.sent_s, times[-1] - record.sent_s
    itl_s = _ratio(e2e_s - ttft_s, record.num_output_tokens - 1)
    return RequestTimes(
        ttft_s=ttft_s, e2e_s=e2e_s, tpot_s=itl_s, itl_s=() if itl_s is None else (itl_s,)
    )


def _guidellm(record: RequestRecord) -> RequestTimes | None:
    times = _content_times(record)
    if not times:
        return None
    num_tokens = record.num_output_tokens
    itl_s = _ratio(times[-1] - times[0], num_tokens - 1)
    return RequestTimes(
        ttft_s=times[0] - record.sent_s,
        e2e_s=record.end_s - record.sent_s,
        tpot_s=_ratio(times[-1] - record.sent_s, num_tokens),
        itl_s=() if itl_s is None else (itl_s,),
        itl_weights=() if itl_s is None else (num_tokens - 1,),
    )


def _weft(record: RequestRecord) -> RequestTimes | None:
    arrivals = token_arrivals(record)
    if not arrivals:
        return None
    first_s, first_tokens = arrivals[0]
    last_s = arrivals[-1][0]
    later = arrivals[1:]
    gaps = [after[0] - before[0] for before, after in zip(arrivals, later, strict=False)]
    start_s = record.sent_s if record.spec.at_s is None else record.scheduled_s
    return RequestTimes(
        ttft_s=first_s - start_s,
        e2e_s=last_s - start_s,
        tpot_s=_ratio(last_s - first_s, record.num_output_tokens - first_tokens),
        itl_s=[gap / count for gap, (_, count) in zip(gaps, later, strict=True)],
        itl_weights=[count for _, count in later],
    )


def token_arrivals(record: RequestRecord) -> list[tuple[float, int]]:
    """(time, tokens that arrived) of each chunk that brought a token.

    By the server's cumulative counts where every chunk has one; else each chunk with content
    is taken for one token, and what the final count has more is given to the last chunk's
    denominator only (``num_output_tokens``).
    """
    if record.chunk_tokens and min(record.chunk_tokens) >= 0:
        before = [0, *record.chunk_tokens]
        new = [count - last for count, last in zip(record.chunk_tokens, before, strict=False)]
        return [(at_s, count) for at_s, count in zip(record.chunk_s, new, strict=True) if count > 0]
    return [(at_s, 1) for at_s in _content_times(record)]


def _content_times(record: RequestRecord) -> list[float]:
    pairs = zip(record.chunk_s, record.chunk_content, strict=True)
    return [at_s for at_s, content in pairs if content]


def _gaps(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


def _ratio(duration_s: float, count: int) -> float | None:
    return duration_s / count if count > 0 else None


WEFT = Definition(
    name="weft",
    stated={
        "t0": "the scheduled time of the request (open loop and traces), else its sending",
        "ttft": "t0 to the first chunk that brings a token by the server's count",
        "tpot": "(tN - t1) / (tokens after the first chunk), one value a request",
        "itl": "the gap before each chunk with tokens divided by its tokens, one value a token",
        "e2e": "t0 to the last chunk that brings a token",
        "goodput": "requests within all limits over all offered requests; a failed one misses",
    },
    measure=_weft,
    undefined_tpot="passes",
    goodput_counts_failures=True,
)

VLLM = Definition(
    name="vllm",
    stated={
        "t0": "when the request is given to the HTTP client; connecting counts",
        "ttft": "t0 to the first chunk with choices, even role-only or empty",
        "tpot": "(E2E - TTFT) / (n - 1), one value a request of more than one token",
        "itl": "all gaps between chunks with choices, pooled",
        "e2e": "t0 to the last chunk with choices",
        "goodput": "completed requests within all limits; a one-token answer has TPOT 0",
    },
    measure=_vllm,
    undefined_tpot="passes",
    goodput_counts_failures=False,
)

AIPERF = Definition(
    name="aiperf",
    stated={
        "t0": "when the request is sent",
        "ttft": "t0 to the first chunk with content",
        "tpot": "(E2E - TTFT) / (n - 1); called inter-token latency there",
        "itl": "the same, one average a request",
        "e2e": "t0 to the last chunk with content",
        "goodput": "completed requests within all limits; a one-token answer misses a TPOT limit",
    },
    measure=_aiperf,
    undefined_tpot="fails",
    goodput_counts_failures=False,
)

GUIDELLM = Definition(
    name="guidellm",
    stated={
        "t0": "when the request is sent",
        "ttft": "t0 to the first chunk with content",
        "tpot": "(tN - t0) / n: TTFT is part of it",
        "itl": "(tN - t1) / (n - 1), one average a request, weighted by n - 1",
        "e2e": "t0 to the end of the response",
        "goodput": "completed requests within all limits; one-token answers left out of a TPOT limit",
    },
    measure=_guidellm,
    undefined_tpot="left out",
    goodput_counts_failures=False,
)

DEFINITIONS: dict[str, Definition] = {
    definition.name: definition for definition in (WEFT, VLLM, AIPERF, GUIDELLM)
}
