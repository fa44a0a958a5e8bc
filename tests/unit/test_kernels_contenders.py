"""What is measured beside the kernels: names, jobs and the vote, without a GPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from weft.bench import device_runs
from weft.bench.allreduce_ranks import (
    known_device_algorithms,
    known_transports,
    pose_as_hosts,
    topologies,
)
from weft.errors import EnvironmentUnavailable, UserError
from weft.kernels import contenders
from weft.kernels.contenders import Field, names_of


def test_a_node_of_gpus_is_measured_beside_all_peers() -> None:
    names = names_of(topologies(1, 4, ("peer",)))
    assert names == (
        "backend", "nccl_symmetric", "torch_one_shot", "torch_two_shot", "auto",
        "one_shot", "two_shot", "fused_rms_norm",
    )  # fmt: skip


def test_each_transport_brings_its_algorithms() -> None:
    tcp = names_of(topologies(2, 2, ("tcp",)))
    assert tcp == ("backend", "auto", "hierarchical_host")
    both = names_of(topologies(2, 2, ("peer", "nvshmem")))
    assert {"two_shot", "hierarchical_direct", "hierarchical_nvshmem"} <= set(both)
    assert "hierarchical_host" not in both


def test_chosen_algorithms_always_come_beside_the_librarys_own() -> None:
    assert known_device_algorithms("two_shot, auto", 1, 2, ("peer",)) == (
        "backend", "two_shot", "auto",
    )  # fmt: skip
    assert known_device_algorithms("all", 2, 1, ("tcp",)) == names_of(topologies(2, 1, ("tcp",)))
    with pytest.raises(UserError, match=r"'hierarchical_host' is unknown; choose from all"):
        known_device_algorithms("hierarchical_host", 2, 1, ("peer",))


@pytest.mark.parametrize(
    ("text", "nodes", "message"),
    [("pigeon", 2, "'pigeon' is unknown"), ("peer,nvshmem", 1, "nvshmem links nodes; use `nodes`")],
)
def test_transports_that_cannot_be(text: str, nodes: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        known_transports(text, nodes)


def test_transports_are_read_once_each() -> None:
    assert known_transports("tcp, peer,tcp", 2) == ("tcp", "peer")


def test_virtual_nodes_pose_as_hosts_on_one_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for local, expected in (("2", None), ("4", "node1")):
        monkeypatch.delenv("NCCL_HOSTID", raising=False)
        monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        pose_as_hosts(1)
        import os

        assert os.environ.get("NCCL_HOSTID") == expected
    monkeypatch.delenv("NCCL_HOSTID")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")


class Doubling:
    """A communicator of two equal ranks, on the CPU."""

    def all_reduce_residual_rms_norm(
        self,
        tensor: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        out: torch.Tensor,
    ) -> torch.Tensor:
        assert tensor.shape == residual.shape == out.shape
        assert weight.shape == tensor.shape[-1:]
        residual += 2 * tensor
        return out


@pytest.mark.parametrize(("count", "rows"), [(512, 1), (4096, 1), (3 * 4096, 3)])
def test_the_fused_job_leaves_the_sum(count: int, rows: int) -> None:
    communicator: Any = Doubling()
    source = torch.randn(count).bfloat16()
    job = contenders._fused(communicator, source)
    assert job is not None
    for _ in range(2):
        job.fresh(source)
        assert torch.equal(job.call(), 2 * source)


def test_the_fused_job_refuses_what_is_no_whole_row() -> None:
    communicator: Any = Doubling()
    assert contenders._fused(communicator, torch.zeros(5000)) is None
    assert contenders._fused(communicator, torch.zeros(7)) is None


def test_jobs_sum_in_a_place_of_their_own() -> None:
    source = torch.randn(100)
    job = contenders._in_place(lambda tensor: tensor.mul_(3), source)
    for _ in range(2):
        job.fresh(source)
        assert torch.equal(job.call(), 3 * source)


def refuse(tensor: torch.Tensor) -> None:
    raise UserError("does not fit")


def test_a_kernel_that_refuses_a_message_is_left_out_there() -> None:
    assert contenders._weft(refuse, torch.zeros(4)) is None
    assert contenders._weft(partial(torch.Tensor.mul_, other=2), torch.zeros(4)) is not None


def test_a_missing_transport_is_the_reason() -> None:
    field = Field(missing={"transport nvshmem": "NVSHMEM is not installed"})
    with pytest.raises(EnvironmentUnavailable, match="NVSHMEM is not installed"):
        contenders._communicator_for("hierarchical_nvshmem", field)


def test_long_calls_make_short_graphs() -> None:
    sizes = [1 << 10, 1 << 20, 8 << 20, 64 << 20]
    assert [device_runs.calls_in_a_graph(size) for size in sizes] == [40, 40, 12, 4]
