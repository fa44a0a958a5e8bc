"""Each tool's definitions on hand-made answers, and the intervals around figures."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.bench.serving.definitions import DEFINITIONS, token_arrivals
from weft.bench.serving.figures import ServiceLimits, figures, parse_limits
from weft.bench.serving.records import RequestRecord, RequestSpec
from weft.bench.serving.statistics import (
    grouped_mean,
    grouped_percentiles,
    mean,
    order_statistic_ranks,
    percentile,
)
from weft.errors import UserError


def record(
    chunk_s: list[float],
    content: list[int],
    tokens: list[int] | None = None,
    output_tokens: int | None = None,
    *,
    scheduled_s: float = 0.0,
    sent_s: float = 1.0,
    error: str | None = None,
    at_s: float | None = 0.0,
) -> RequestRecord:
    return RequestRecord(
        index=0,
        spec=RequestSpec(prompt_tokens=4, output_tokens=8, at_s=at_s),
        scheduled_s=scheduled_s,
        ready_s=scheduled_s,
        sent_s=sent_s,
        end_s=(chunk_s or [sent_s])[-1] + 0.5,
        error=error,
        output_tokens=output_tokens,
        chunk_s=array("d", chunk_s),
        chunk_tokens=array("q", tokens or [-1] * len(chunk_s)),
        chunk_content=bytearray(content),
    )


# A role chunk at 2, one token at 3, three tokens at 6, an empty final chunk at 7.
CHAT = record([2, 3, 6, 7], [0, 1, 1, 0], [0, 1, 4, 4], 4)


def test_vllm_counts_every_chunk_with_choices():
    times = DEFINITIONS["vllm"].measure(CHAT)
    assert (times.ttft_s, times.e2e_s) == (1.0, 6.0)
    assert times.tpot_s == pytest.approx(5 / 3)
    assert list(times.itl_s) == [1.0, 3.0, 1.0]


def test_aiperf_counts_content():
    times = DEFINITIONS["aiperf"].measure(CHAT)
    assert (times.ttft_s, times.e2e_s, times.tpot_s) == (2.0, 5.0, 1.0)
    assert list(times.itl_s) == [1.0]


def test_guidellm_puts_ttft_into_tpot_and_weights_itl():
    times = DEFINITIONS["guidellm"].measure(CHAT)
    assert (times.ttft_s, times.e2e_s, times.tpot_s) == (2.0, 6.5, 5 / 4)
    assert (list(times.itl_s), list(times.itl_weights)) == ([1.0], [3])


def test_weft_counts_tokens_from_the_scheduled_time():
    times = DEFINITIONS["weft"].measure(CHAT)
    assert (times.ttft_s, times.e2e_s, times.tpot_s) == (3.0, 6.0, 1.0)
    assert (list(times.itl_s), list(times.itl_weights)) == ([1.0], [3])
    closed = record([2, 3], [1, 1], [1, 2], 2, at_s=None)
    assert DEFINITIONS["weft"].measure(closed).ttft_s == 1.0


def test_weft_does_not_blame_a_first_chunk_of_several_tokens():
    burst = record([2, 4], [1, 1], [3, 5], 5)
    assert DEFINITIONS["weft"].measure(burst).tpot_s == 1.0
    assert DEFINITIONS["vllm"].measure(burst).tpot_s == 0.5


def test_without_running_counts_each_chunk_with_content_is_a_token():
    assert token_arrivals(record([2, 3, 4], [0, 1, 1])) == [(3, 1), (4, 1)]
    assert DEFINITIONS["weft"].measure(record([2], [0])) is None
    assert DEFINITIONS["aiperf"].measure(record([2], [0])) is None


def test_one_token_answers_and_failures_in_goodput():
    good = record([2, 3], [1, 1], [1, 2], 2)
    one = record([2], [1], [1], 1)
    failed = record([], [], error="status 503")
    limits = ServiceLimits(ttft_ms=5000, tpot_ms=5000)
    shares = {
        name: (goodput["num_good"], goodput["num_judged"])
        for name, definition in DEFINITIONS.items()
        for goodput in [figures([good, one, failed], definition, limits, 10.0)["goodput"]]
    }
    assert shares == {"weft": (2, 3), "vllm": (2, 2), "aiperf": (1, 2), "guidellm": (1, 1)}


def test_a_limit_that_is_missed_is_missed():
    good = record([2, 3], [1, 1], [1, 2], 2)
    for limits in (
        ServiceLimits(ttft_ms=999),
        ServiceLimits(tpot_ms=999),
        ServiceLimits(e2e_ms=1999),
    ):
        for name in ("vllm", "weft"):
            goodput = figures([good], DEFINITIONS[name], limits, 1.0)["goodput"]
            assert goodput["num_good"] == 0, (name, limits)


def test_failures_as_infinite():
    records = [record([2], [1], [1], 1)] * 9 + [record([], [], error="x")]
    under = figures(records, DEFINITIONS["weft"], ServiceLimits(), 1.0)["with_failures_as_infinite"]
    assert under["ttft"]["p50"] == 2000.0
    assert under["ttft"]["p99"] is None


def test_nothing_completed():
    document = figures(
        [record([], [], error="x")], DEFINITIONS["weft"], ServiceLimits(ttft_ms=1), 1.0
    )
    assert document["ttft_ms"] is None
    assert document["goodput"]["share"] == 0.0


def test_limits_of_the_command_line():
    assert parse_limits("ttft:200,tpot:50.5, e2e:9") == ServiceLimits(
        ttft_ms=200, tpot_ms=50.5, e2e_ms=9
    )
    for wrong in ("ttft", "ttft:x", "itl:5", "ttft:-1", "ttft:nan"):
        with pytest.raises(UserError, match="`goodput`"):
            parse_limits(wrong)


samples = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(samples, st.sampled_from([50.0, 90.0, 99.0]))
def test_percentiles_are_numpys(values, percent):
    estimate = percentile(np.array(values), percent)
    assert estimate.value == pytest.approx(np.percentile(values, percent))
    assert estimate.low is None or estimate.low <= estimate.value + 1e-9
    assert estimate.high is None or estimate.high >= estimate.value - 1e-9
    pooled = grouped_percentiles([np.array(values)], None, [percent], resamples=3)[0]
    assert pooled.value == pytest.approx(np.percentile(values, percent))


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 4)), min_size=1, max_size=20))
def test_weighted_percentiles_are_those_of_repeated_values(pairs):
    values = np.array([value for value, _ in pairs])
    weights = np.array([weight for _, weight in pairs], float)
    got = grouped_percentiles([values], [weights], [50.0, 95.0], resamples=2)
    repeated = np.repeat(values, weights.astype(int))
    assert [one.value for one in got] == pytest.approx(np.percentile(repeated, [50, 95]))


@pytest.mark.parametrize(("num", "quantile"), [(50, 0.5), (400, 0.9), (2000, 0.99), (20000, 0.5)])
def test_order_statistic_intervals_cover_the_true_quantile(num, quantile):
    generator = np.random.default_rng(1)
    low, high = order_statistic_ranks(num, quantile)
    hits = 0
    for _ in range(400):
        ordered = np.sort(generator.exponential(size=num))
        hits += ordered[low] <= -np.log1p(-quantile) <= ordered[high]
    assert 0.92 <= hits / 400 <= 1.0


def test_too_few_samples_bound_nothing():
    assert (
        order_statistic_ranks(10, 0.99) == (6, None) or order_statistic_ranks(10, 0.99)[1] is None
    )
    assert order_statistic_ranks(3, 0.5) == (None, None)


def test_bootstrap_means_cover():
    generator = np.random.default_rng(2)
    hits = 0
    for seed in range(100):
        estimate = mean(generator.exponential(size=80), seed=seed)
        hits += estimate.low <= 1.0 <= estimate.high
    assert hits >= 85
    weighted = grouped_mean(np.array([2.0, 9.0]), np.array([1.0, 3.0]))
    assert weighted.value == 11 / 4
