"""Which kernel for which message, and what the mailboxes must hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.errors import UserError
from weft.kernels import selection
from weft.kernels.selection import GroupShape, Variant, capacity, choose

TOPOLOGIES = st.sampled_from(
    [
        *(GroupShape(num_ranks=n) for n in range(2, 9)),
        GroupShape(num_ranks=4, nodes=2),
        GroupShape(num_ranks=4, nodes=4),
        GroupShape(num_ranks=6, nodes=3),
        GroupShape(num_ranks=4, nodes=2, transport="tcp"),
        GroupShape(num_ranks=2, nodes=2, transport="tcp"),
        GroupShape(num_ranks=4, nodes=2, transport="nvshmem"),
        GroupShape(num_ranks=6, nodes=3, transport="nvshmem"),
    ]
)


@given(TOPOLOGIES, st.integers(1, 80 << 20), st.integers(1, 80 << 20))
def test_what_auto_chooses_fits_the_mailbox(topology: GroupShape, most: int, size: int) -> None:
    room = capacity(topology, most)
    chosen = choose(topology, min(size, most), "auto", room)
    if chosen is not None:
        assert topology.needs(chosen.algorithm, min(size, most)) <= room
        assert chosen.algorithm in topology.algorithms


@given(TOPOLOGIES, st.integers(1, 8 << 20))
def test_named_algorithms_fit_up_to_max_bytes(topology: GroupShape, most: int) -> None:
    room = capacity(topology, most)
    for algorithm in topology.algorithms:
        if algorithm != "one_shot":
            chosen = choose(topology, most, algorithm, room)
            assert chosen is not None
            assert chosen.algorithm == algorithm


@given(TOPOLOGIES, st.integers(1, 80 << 20))
def test_launch_shapes_are_launchable(topology: GroupShape, size: int) -> None:
    for rule in topology.rules():
        sharing = topology.sharing(rule.variant.algorithm)
        blocks = rule.variant.blocks(size, sharing)
        assert 1 <= blocks <= selection.MAX_BLOCKS
        limit = (
            1024 if topology.num_ranks <= 4 and rule.variant.algorithm in selection.FLAT else 512
        )
        assert rule.variant.threads <= (1024 if rule.variant.algorithm == "one_shot" else limit)
        assert rule.variant.threads % 32 == 0


@pytest.mark.parametrize("nodes", [2, 4])
@pytest.mark.parametrize("variant", [(64, 264), (512, 132), (512, 264), (128, 64)])
def test_over_tcp_a_block_has_one_chunk(nodes: int, variant: tuple[int, int]) -> None:
    topology = GroupShape(num_ranks=4, nodes=nodes, transport="tcp")
    threads, blocks = variant
    shape = Variant(algorithm="hierarchical_host", threads=threads, max_blocks=blocks)
    piece = topology.launch_bytes(shape)
    assert piece % 16 == 0
    sharing = topology.sharing(shape.algorithm)
    assert shape.blocks(piece, sharing) * threads * 16 * sharing >= piece
    assert topology.needs(shape.algorithm, piece) <= capacity(topology, 64 << 20)


def test_over_tcp_the_mailboxes_hold_one_piece_and_auto_takes_every_size() -> None:
    topology = GroupShape(num_ranks=4, nodes=2, transport="tcp")
    assert capacity(topology, 64 << 20) < 5 << 20
    assert choose(topology, 64 << 20, "auto", capacity(topology, 64 << 20)) is not None
    assert choose(topology, 2 << 20, "auto", capacity(topology, 1 << 20)) is None


def test_backend_is_asked_for_by_name_and_beyond_the_table() -> None:
    topology = GroupShape(num_ranks=4)
    room = capacity(topology, 64 << 20)
    assert choose(topology, 8, "backend", room) is None
    assert choose(topology, 8, "auto", room) is not None
    assert choose(topology, 100 << 20, "auto", room) is None


def test_a_message_that_does_not_fit_names_the_option() -> None:
    topology = GroupShape(num_ranks=4)
    with pytest.raises(UserError, match="raise max_bytes"):
        choose(topology, 2 << 20, "two_shot", capacity(topology, 1 << 20))
