"""Which link a tensor-parallel group gets between its nodes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from weft.comm import device_all_reduce
from weft.comm.device_all_reduce import link_between_nodes
from weft.errors import EnvironmentUnavailable
from weft.kernels import support
from weft.vocabulary.layout import Layout


def groups(layout: Layout, rank: int, rdma_of_ranks=()):
    return SimpleNamespace(
        layout=layout,
        tp=SimpleNamespace(ranks=layout.group_of("tp", rank)),
        host_gather=lambda mine: [mine, *rdma_of_ranks],
    )


@pytest.fixture
def rdma(tmp_path, monkeypatch):
    monkeypatch.setattr(support, "RDMA_DEVICES", tmp_path / "infiniband")
    return tmp_path / "infiniband"


def test_inside_a_node_gpus_reach_each_other(rdma):
    assert link_between_nodes(groups(Layout(tp=4), 0), "auto") == (1, "peer")
    assert link_between_nodes(groups(Layout(tp=2, pp=2, nodes=2), 3), "auto") == (1, "peer")


@pytest.mark.parametrize("choice", ["auto", "weft"])
def test_without_rdma_nodes_are_linked_by_tcp(rdma, choice):
    rdma.mkdir()
    assert link_between_nodes(groups(Layout(tp=4, nodes=2), 1, [False]), choice) == (2, "tcp")


@pytest.mark.parametrize("of_others", [[False], [True]])
def test_one_rank_with_rdma_decides_for_all(rdma, of_others):
    if not any(of_others):
        (rdma / "mlx5_0").mkdir(parents=True)
    crossing = groups(Layout(tp=8, nodes=4), 0, of_others)
    assert link_between_nodes(crossing, "weft") == (4, "nvshmem")
    with pytest.raises(EnvironmentUnavailable, match="--all-reduce weft"):
        link_between_nodes(crossing, "auto")


def test_every_rank_asks_all_where_there_are_several_nodes(monkeypatch, rdma):
    asked = []
    monkeypatch.setattr(device_all_reduce, "has_rdma", lambda: asked.append(True) or False)
    link_between_nodes(groups(Layout(tp=2, pp=2, nodes=2), 0), "auto")
    assert asked, "a rank that would not ask would leave the others waiting"
