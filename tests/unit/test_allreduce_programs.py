"""The programs: right sums on any shape of group, matching sends and combines, few steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allreduce_reference import STORAGE, add_in_order, all_reduce_reference, from_float, to_float
from weft.allreduce.algorithms import PROGRAMS, build
from weft.allreduce.errors import UnknownAlgorithmError
from weft.allreduce.pairing import Pairing
from weft.allreduce.program import Topology, slice_of
from weft.errors import LayoutError

TOPOLOGIES = st.tuples(st.integers(1, 9), st.integers(1, 9)).map(
    lambda shape: Topology(nodes=shape[0], gpus_per_node=shape[1])
)
NAMES = st.sampled_from(sorted(PROGRAMS))
COUNTS = st.sampled_from([0, 1, 2, 3, 7, 16, 31, 63, 64, 65, 101])


@settings(max_examples=300, deadline=None)
@given(NAMES, TOPOLOGIES, COUNTS, st.sampled_from(sorted(STORAGE)), st.integers(0, 2**32 - 1))
def test_every_rank_gets_the_exact_sum(name, topology, count, dtype, seed):
    generator = np.random.default_rng(seed)
    whole = [generator.integers(-2, 3, count) for _ in range(topology.ranks)]
    inputs = [from_float(item.astype(np.float32), dtype) for item in whole]
    results = all_reduce_reference(name, topology, inputs, dtype)
    for result in results:
        assert np.array_equal(to_float(result, dtype), np.sum(whole, axis=0))


@settings(max_examples=100, deadline=None)
@given(NAMES, TOPOLOGIES, COUNTS, st.integers(0, 2**32 - 1))
def test_all_ranks_hold_the_same_bits(name, topology, count, seed):
    generator = np.random.default_rng(seed)
    inputs = [generator.standard_normal(count, dtype=np.float32) for _ in range(topology.ranks)]
    results = all_reduce_reference(name, topology, inputs, "float32")
    assert len({result.tobytes() for result in results}) == 1
    exact = np.sum(np.asarray(inputs, dtype=np.float64), axis=0)
    scale = np.sum(np.abs(inputs), axis=0) + 1e-30
    assert (np.abs(results[0] - exact) <= topology.ranks * 1.2e-7 * scale).all()


@settings(max_examples=100, deadline=None)
@given(NAMES, TOPOLOGIES, COUNTS)
def test_what_is_sent_is_awaited_and_steps_have_the_same_names(name, topology, count):
    programs = [build(name, topology, count, rank) for rank in range(topology.ranks)]
    assert len({tuple(step.name for step in program) for program in programs}) == 1
    for index in range(len(programs[0])):
        sent = {
            (rank, send.target, send.start, send.stop)
            for rank, program in enumerate(programs)
            for send in program[index].sends
        }
        awaited = {
            (source, rank, combine.start, combine.stop)
            for rank, program in enumerate(programs)
            for source, combine in program[index].receives(rank)
        }
        assert sent == awaited
        assert len({(source, target) for source, target, _, _ in sent}) == len(sent)


@pytest.mark.parametrize(
    ("name", "nodes", "width", "steps"),
    [
        ("ring", 2, 4, 14),
        ("one_shot", 2, 4, 1),
        ("two_shot", 2, 4, 2),
        ("recursive_doubling", 2, 4, 3),
        ("recursive_doubling", 3, 2, 2 + 2),
        ("halving_doubling", 2, 4, 6),
        ("hierarchical_doubling", 8, 4, 1 + 3 + 1),
        ("hierarchical_doubling", 6, 4, 1 + 2 + 2 + 1),
        ("hierarchical_direct", 8, 4, 3),
    ],
)
def test_number_of_steps(name, nodes, width, steps):
    topology = Topology(nodes=nodes, gpus_per_node=width)
    assert len(build(name, topology, 1000, 0)) == steps


def test_hierarchical_programs_leave_the_node_with_their_slice_alone():
    topology = Topology(nodes=4, gpus_per_node=4)
    for name in ("hierarchical_doubling", "hierarchical_direct"):
        for step in build(name, topology, 4000, 5):
            for send in step.sends:
                if topology.node_of(send.target) != topology.node_of(5):
                    assert (send.start, send.stop) == (1000, 2000)
                    assert send.target % 4 == 1


def test_one_rank_or_no_element_needs_no_step():
    assert build("ring", Topology(), 10, 0) == ()
    assert build("ring", Topology(nodes=2, gpus_per_node=2), 0, 1) == ()


def test_unknown_algorithms_and_empty_shapes_are_refused():
    with pytest.raises(UnknownAlgorithmError, match=r"'rings': unknown; choose one of ring"):
        build("rings", Topology(nodes=2), 4, 0)
    with pytest.raises(LayoutError, match="`nodes` 0"):
        Topology(nodes=0)


@given(st.integers(1, 200))
def test_pairing_covers_every_rank_once(size):
    pairing = Pairing(size, 1)
    places = [pairing.rank_of(index) for index in range(pairing.active)]
    assert [pairing.index_of(rank) for rank in places] == list(range(pairing.active))
    folded = [rank for rank in range(size) if pairing.index_of(rank) is None]
    assert sorted(places + folded) == list(range(size))
    assert len(pairing.distances) == int(math.log2(pairing.active))


@given(st.integers(1, 40), st.integers(0, 200))
def test_slices_cover_everything_once(parts, length):
    bounds = [slice_of(part, parts, 5, 5 + length) for part in range(parts)]
    assert [first for first, _ in bounds] + [5 + length] == [5] + [last for _, last in bounds]
    assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1


def test_sixteen_bit_types_add_in_float32_and_round_once():
    parts = [from_float(np.array([value], dtype=np.float32), "bfloat16") for value in (256, 1, 1)]
    assert to_float(add_in_order(parts, "bfloat16"), "bfloat16")[0] == 258
    by_pairs = add_in_order([add_in_order(parts[:2], "bfloat16"), parts[2]], "bfloat16")
    assert to_float(by_pairs, "bfloat16")[0] == 256


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_torchs(dtype):
    import torch

    values = np.random.default_rng(0).standard_normal(4000, dtype=np.float32) * 300
    expected = torch.from_numpy(values).to(getattr(torch, dtype))
    assert np.array_equal(to_float(from_float(values, dtype), dtype), expected.float().numpy())
    special = from_float(np.array([np.nan, np.inf], dtype=np.float32), dtype)
    assert np.isnan(to_float(special, dtype)[0])
    assert np.isinf(to_float(special, dtype)[1])
