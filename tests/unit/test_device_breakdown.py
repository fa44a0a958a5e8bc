"""Steps taken apart from kernels: made-up timelines with a known answer."""

from __future__ import annotations

import random

import pytest

from weft.study.device_breakdown import TracedKernel, device_breakdown, operation_of
from weft.vocabulary.layout import Layout

US = 1e-6


def kernel(name, start_us, end_us):
    return TracedKernel(name=name, start_s=start_us * US, end_s=end_us * US)


def timeline(rng, num_calls, *, arrivals_us, reduce_us, clock_us=0.0):
    """Alternate compute and an all-reduce that ends ``reduce_us`` after the last rank came."""
    kernels, now = [], 0.0
    for call in range(num_calls):
        mine = now + arrivals_us[call]
        last = max(now + other[call] for other in rng)
        end = last + reduce_us
        kernels += [kernel("gemm", clock_us + now, clock_us + mine)]
        kernels += [kernel("one_shot", clock_us + mine, clock_us + end)]
        now = end
    return kernels


@pytest.mark.parametrize("seed", range(5))
def test_every_part_of_a_random_timeline_is_found(seed):
    rng = random.Random(seed)
    num_ranks, num_calls, reduce_us = 4, 30, rng.uniform(2, 9)
    arrivals = [[rng.uniform(5, 40) for _ in range(num_calls)] for _ in range(num_ranks)]
    clocks = [0.0, *(rng.uniform(-3, 3) for _ in range(num_ranks - 1))]
    ranks = [
        timeline(arrivals, num_calls, arrivals_us=mine, reduce_us=reduce_us, clock_us=clock)
        for mine, clock in zip(arrivals, clocks, strict=True)
    ]
    time = device_breakdown(ranks, Layout(tp=num_ranks), num_calls)
    compute = sum(map(sum, arrivals)) / num_ranks
    latest = sum(max(column) for column in zip(*arrivals, strict=True))
    assert time.compute_ms == pytest.approx(compute / 1e3)
    assert time.communication_ms == pytest.approx(num_calls * reduce_us / 1e3)
    assert time.wait_ms == pytest.approx((latest - compute) / 1e3)
    assert time.idle_ms == pytest.approx((max(clocks) - min(clocks)) / 1e3, abs=1e-6), (
        "only what the clocks differ by"
    )


def test_a_kernel_that_starts_early_counts_from_the_end_of_the_one_in_front():
    kernels = [kernel("gemm", 0, 10), kernel("two_shot", 2, 15), kernel("gemm", 9, 20)]
    time = device_breakdown([kernels, kernels], Layout(tp=2), 1)
    assert time.compute_ms == pytest.approx(15e-3)
    assert time.communication_ms == pytest.approx(5e-3)
    assert time.wait_ms == pytest.approx(0)


def test_a_stage_that_waits_for_the_one_before():
    first = [kernel("gemm", 0, 30), kernel("ncclDevKernel_SendRecv(x)", 30, 33)]
    second = [kernel("ncclDevKernel_SendRecv(x)", 1, 33), kernel("gemm", 33, 53)]
    time = device_breakdown([first, second], Layout(pp=2), 1)
    assert time.compute_ms == pytest.approx(25e-3)
    assert time.wait_ms == pytest.approx(29e-3 / 2)
    assert time.communication_ms == pytest.approx((3 + 3) * 1e-3 / 2)
    assert time.idle_ms == pytest.approx((20 + 1) * 1e-3 / 2)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        (
            "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
            "all_reduce",
        ),
        ("ncclSymkDevKernel_AllReduce_RSxLD_AGxST_sum_bf16", "all_reduce"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "all_gather"),
        ("ncclDevKernel_Broadcast_RING_LL", "broadcast"),
        ("all_reduce_residual_rms_norm", "all_reduce"),
        ("hierarchical_host", "all_reduce"),
        ("residual_rms_norm", None),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", None),
    ],
)
def test_names_of_kernels(name, operation):
    assert operation_of(name) == operation
