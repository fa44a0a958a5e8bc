"""Which link a group of GPUs gets between its nodes, and what a public call costs in Python."""

from __future__ import annotations

import timeit
from typing import Any

import pytest
import torch
import torch.distributed as dist

import weft
from weft.comm import all_reduce as public
from weft.comm.all_reduce import link_between_nodes
from weft.errors import EnvironmentUnavailable

ONE_HOST = [("a", False)] * 4
TWO_HOSTS = [("a", False)] * 2 + [("b", False)] * 2
RDMA = [("a", False), ("b", True)]


@pytest.mark.parametrize(
    ("places", "num_nodes", "insists", "link"),
    [
        (ONE_HOST, None, False, (1, "peer")),
        (ONE_HOST, 1, False, (1, "peer")),
        (ONE_HOST, 2, False, (2, "tcp")),
        (TWO_HOSTS, None, False, (2, "tcp")),
        (RDMA, None, True, (2, "nvshmem")),
        (RDMA, 1, False, (1, "peer")),
    ],
)
def test_a_group_gets_the_link_that_its_nodes_have(
    places: list[tuple[str, bool]], num_nodes: int | None, insists: bool, link: tuple[int, str]
) -> None:
    assert link_between_nodes(places, num_nodes, insists=insists) == link


def test_over_rdma_the_library_is_left_alone() -> None:
    with pytest.raises(EnvironmentUnavailable, match="`all_reduce` weft uses them over NVSHMEM"):
        link_between_nodes(RDMA, None, insists=False)


class Stub(public.Reducer):
    """A kernel that takes no time."""

    def all_reduce(self, tensor: torch.Tensor, out: Any = None, **_: Any) -> torch.Tensor:
        return tensor if out is None else out


def test_the_public_call_costs_little_above_the_method(tmp_path, monkeypatch) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        stub, tensor = Stub(dist.group.WORLD), torch.ones(4)
        monkeypatch.setitem(public._reducers, (dist.group.WORLD, tensor.device), stub)
        calls = 200  # short enough to fit between the turns of a busy machine
        scale = min(timeit.repeat(lambda: None, number=calls, repeat=300))
        both = [
            min(timeit.repeat(work, number=calls, repeat=300))
            for work in (
                lambda: weft.all_reduce(tensor),
                lambda: stub.all_reduce(tensor, None, algorithm="auto"),
            )
        ]
        above_us = (both[0] - both[1]) / calls * 1e6
        slowness = max(1.0, scale / calls * 1e9 / 40)  # an empty call takes 40 ns or less elsewhere
        print(f"weft.all_reduce: {above_us:.2f} us above the method, machine {slowness:.1f}")
        assert above_us < 1.5 * slowness
    finally:
        dist.destroy_process_group()
