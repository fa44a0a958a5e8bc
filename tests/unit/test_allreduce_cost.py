"""The α-β forms: the published formulas, the event simulation, NCCL's model, speed, imports."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from allreduce_simulation import is_exact, simulate_us
from weft.allreduce import nccl_model, scale
from weft.allreduce.cost import (
    ALGORITHMS,
    WEFT_ALGORITHMS,
    best,
    latency_uncertainty_us,
    latency_us,
)
from weft.allreduce.errors import UnknownAlgorithmError
from weft.allreduce.program import Topology
from weft.errors import LayoutError
from weft.fabric import load
from weft.fabric.builtin import BUILTIN_FABRICS

PLAIN = replace(
    load("a100-slingshot11"),
    call_us=0.0,
    intra=replace(load("a100-slingshot11").intra, packet_factor=1.0),
)
M = 1_000_000.0
ALPHA_I, ALPHA_X = PLAIN.intra.latency_us, PLAIN.inter.latency_us
BETA_I, BETA_X = 1e-3 / PLAIN.intra.bandwidth_gb_s, 1e-3 / PLAIN.inter.bandwidth_gb_s


@pytest.mark.parametrize(
    ("name", "nodes", "width", "expected"),
    [
        ("ring", 1, 4, 6 * ALPHA_I + 6 / 4 * M * BETA_I),
        ("ring", 4, 2, 14 * ALPHA_X + 14 / 8 * M * BETA_X),
        ("tree", 1, 8, 6 * ALPHA_I + 2 * M * BETA_I),
        ("recursive_doubling", 1, 8, 3 * (ALPHA_I + M * BETA_I)),
        ("one_shot", 1, 4, ALPHA_I + 3 * M * BETA_I),
        ("two_shot", 1, 4, 2 * (ALPHA_I + 0.75 * M * BETA_I)),
        (
            "hierarchical_doubling",
            16,
            4,
            2 * (ALPHA_I + 0.75 * M * BETA_I) + 4 * (ALPHA_X + M / 4 * BETA_X * 2),
        ),
        (
            "hierarchical_direct",
            8,
            4,
            2 * (ALPHA_I + 0.75 * M * BETA_I) + ALPHA_X + 7 * M / 4 * BETA_X * 2,
        ),
    ],
)
def test_published_forms(name, nodes, width, expected):
    assert float(latency_us(name, M, nodes, width, PLAIN)) == pytest.approx(expected)


@pytest.mark.parametrize("fabric", BUILTIN_FABRICS)
@pytest.mark.parametrize(
    "shape", [(1, 2), (1, 8), (4, 4), (8, 1), (16, 2), (3, 4), (5, 1), (1, 6), (6, 2)]
)
def test_the_event_simulation_agrees_within_one_percent(fabric, shape):
    nodes, width = shape
    topology, links = Topology(nodes=nodes, gpus_per_node=width), load(fabric)
    for name in WEFT_ALGORITHMS:
        for size in (12 * 1024, 3 * 2**18):
            form = float(latency_us(name, size, nodes, width, links, use_tables=False))
            simulated = max(simulate_us(name, size, 1, topology, links))
            assert simulated <= 1.01 * form
            assert simulated >= 0.99 * form or not is_exact(name, nodes, width)


def test_a_rank_that_starts_late_delays_the_others():
    topology = Topology(gpus_per_node=4)
    late = simulate_us("one_shot", 1000, 2, topology, PLAIN, start_us=[0, 0, 50, 0])
    aligned = simulate_us("one_shot", 1000, 2, topology, PLAIN)
    assert min(late) >= 50
    assert max(late) == pytest.approx(max(aligned) + 50)


def test_shared_adapters_divide_the_bandwidth():
    one_nic = replace(PLAIN, nics_per_node=1)
    alone = float(latency_us("hierarchical_doubling", M, 2, 4, PLAIN))
    shared = float(latency_us("hierarchical_doubling", M, 2, 4, one_nic))
    assert shared - alone == pytest.approx(3 * M / 4 * BETA_X * 2)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_vectorised_and_grows_with_size(name):
    sizes = np.array([[1e3, 1e4], [1e5, 1e6]])
    times = latency_us(name, sizes, 4, 4, load("h100-nvlink-ndr400"))
    assert times.shape == sizes.shape
    assert (np.diff(times.ravel()) >= 0).all()
    assert latency_us(name, sizes, 1, 1, PLAIN).max() == 0
    assert (latency_uncertainty_us(name, sizes, 4, 4, PLAIN) > 0).all()


def test_a_thousand_ranks_take_less_than_a_second():
    start = time.perf_counter()
    rows = scale.predict(np.geomspace(1024, 2**26, 20).astype(int).tolist(), 256, 4, PLAIN)
    assert time.perf_counter() - start < 1
    assert len(rows) == 20
    assert set(rows[0].times_us) == set(ALGORITHMS)


def test_measured_tables_come_before_forms():
    fabric = load("h200-nvlink")
    assert float(latency_us("one_shot", 8192, 1, 4, fabric)) == pytest.approx(3.7)
    assert float(latency_us("one_shot", 8192, 1, 4, fabric, use_tables=False)) != 3.7
    between = float(latency_us("nccl", 16384, 1, 4, fabric))
    assert 13.24 < between < 14.22


def test_forms_of_the_h200_stay_near_its_measurements():
    fabric = load("h200-nvlink")
    for name, ranks in (("one_shot", 2), ("one_shot", 4), ("two_shot", 4)):
        table = fabric.table(name, ranks=ranks)
        forms = latency_us(name, table.bytes, 1, ranks, fabric, use_tables=False)
        assert np.abs(forms / table.latency_us - 1).max() < 0.35


def test_best_takes_the_smallest_and_crossovers_name_the_change():
    names, times = best([1024, 2**24], 1, 8, PLAIN)
    assert times[0] == min(float(latency_us(name, 1024, 1, 8, PLAIN)) for name in WEFT_ALGORITHMS)
    assert names[0] == "one_shot"
    changes = scale.crossovers([1024, 2**24], 1, 8, PLAIN)
    assert changes[0].before == "one_shot"
    for change in changes:
        below, above = (
            [float(latency_us(name, size, 1, 8, PLAIN)) for name in (change.before, change.after)]
            for size in (change.bytes * 0.98, change.bytes * 1.02)
        )
        assert below[0] <= below[1]
        assert above[0] >= above[1]
    assert scale.crossovers([4096], 1, 8, PLAIN) == []


def test_published_comparison_covers_its_sizes_only():
    rows = scale.predict([1024, 131072, 2**21, 2**23], 16, 4, PLAIN)
    low, high = scale.published_range(rows)
    ratios = [row.times_us["nccl"] / row.times_us["hierarchical_doubling"] for row in rows[1:3]]
    assert (low, high) == (min(ratios), max(ratios))
    assert scale.published_range(rows[:1]) is None


def test_nccl_takes_its_cheapest_protocol_and_slow_networks_cost_their_latency():
    size = np.array([1024.0, 2**27])
    ring = nccl_model.ring_us(size, 1, 8, PLAIN)
    assert ring[0] == pytest.approx(6.6 + 14 * 0.6, rel=0.01)
    assert ring[1] == pytest.approx(2 * 7 / 8 * 2**27 / 255e3, rel=0.1)
    slow = replace(PLAIN, inter=replace(PLAIN.inter, latency_us=100.0))
    assert nccl_model.tree_us(size, 4, 1, slow)[0] > 4 * 100
    assert nccl_model.tree_us(size, 4, 1, PLAIN)[0] < 4 * 10
    nccl = latency_us("nccl", size, 16, 4, PLAIN)
    parts = [latency_us(f"nccl_{name}", size, 16, 4, PLAIN) for name in ("ring", "tree")]
    assert np.array_equal(nccl, np.minimum(*parts))


def test_bad_input():
    with pytest.raises(UnknownAlgorithmError, match="'magic'"):
        latency_us("magic", 8, 2, 2, PLAIN)
    with pytest.raises(LayoutError, match="`gpus_per_node` 0"):
        latency_us("ring", 8, 2, 0, PLAIN)


def test_the_model_imports_without_torch():
    code = (
        "import sys, weft.allreduce.scale, weft.fabric, weft.allreduce.selection;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
