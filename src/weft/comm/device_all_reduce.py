"""Put weft's own all-reduce in front of the backend's, where it can be used."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from weft.comm.communicator import Communicator
from weft.comm.groups import ProcessGroups
from weft.comm.transport import TorchTransport
from weft.errors import EnvironmentUnavailable, UserError
from weft.kernels.support import has_rdma
from weft.vocabulary.conventions import ALL_REDUCE_CHOICES

if TYPE_CHECKING:
    from weft.kernels.communicator import DeviceAllReduce

_log = logging.getLogger("weft")


class DeviceTransport(TorchTransport):
    """torch.distributed with all-reduces by weft's kernels, chosen by size from their table."""

    def __init__(self, plain: TorchTransport, device_all_reduce: DeviceAllReduce) -> None:
        self.__dict__.update(plain.__dict__)
        self.device_all_reduce = device_all_reduce

    def all_reduce(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        if self.device_all_reduce.uses_kernel(tensor.nbytes, tensor.dtype):
            return self.device_all_reduce.all_reduce(tensor.contiguous())
        return super().all_reduce(tensor, site)

    def all_reduce_residual_rms_norm(
        self,
        partial: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        site: str,  # noqa: ARG002
    ) -> torch.Tensor:
        """``residual`` += sum over the group of ``partial``, in place; its weighted RMSNorm."""
        return self.device_all_reduce.all_reduce_residual_rms_norm(partial, residual, weight, eps)


def use_device_all_reduce(groups: ProcessGroups, choice: str) -> DeviceAllReduce | None:
    """Exchange the tensor-parallel group's transport, on all its ranks or on none.

    choice: ``nccl`` leaves the library's own; ``auto`` exchanges it on GPUs where the
    kernels can be used; ``weft`` insists, and on the CPU takes weft's programs. Returns the
    GPU communicator, if there is one. Raises EnvironmentUnavailable, UserError for another
    choice.
    """
    if choice not in ALL_REDUCE_CHOICES:
        raise UserError(f"--all-reduce {choice}: choose one of {', '.join(ALL_REDUCE_CHOICES)}")
    if choice == "nccl" or groups.tp.size == 1:
        return None
    if groups.device.type != "cuda":
        if choice == "weft" and groups.device.type == "cpu":
            _use_programs(groups)
        return None
    from weft.kernels.communicator import DeviceAllReduce

    plain = groups.tp.transport
    assert isinstance(plain, TorchTransport)
    try:
        nodes, transport = link_between_nodes(groups, choice)
        device_all_reduce = DeviceAllReduce(
            plain.group, device=groups.device, nodes=nodes, transport=transport
        )
    except EnvironmentUnavailable as error:
        if choice == "weft":
            raise
        _log.warning("all-reduce by NCCL: %s", error)
        return None
    groups.tp.transport = DeviceTransport(plain, device_all_reduce)
    return device_all_reduce


def link_between_nodes(groups: ProcessGroups, choice: str) -> tuple[int, str]:
    """(nodes of the tensor-parallel group, transport between them); on every rank of the run.

    Over RDMA the library is left alone unless ``choice`` insists: EnvironmentUnavailable.
    """
    layout = groups.layout
    rdma = layout.nodes > 1 and any(groups.host_gather(has_rdma()))
    nodes = len({layout.node_of(rank) for rank in groups.tp.ranks})
    if nodes == 1:
        return 1, "peer"
    if not rdma:
        return nodes, "tcp"
    if choice == "weft":
        return nodes, "nvshmem"
    raise EnvironmentUnavailable(
        "the nodes have RDMA, over which weft's kernels were not measured; --all-reduce weft "
        "uses them over NVSHMEM"
    )


def _use_programs(groups: ProcessGroups) -> None:
    from weft.comm.all_reduce import AlgorithmTransport

    plain = groups.tp.transport
    if isinstance(plain, AlgorithmTransport):
        return
    assert isinstance(plain, TorchTransport)
    groups.tp.transport = AlgorithmTransport(plain.group, groups.tp.ranks, plain.missing_ranks)


def torch_transport(communicator: Communicator) -> TorchTransport:
    """torch.distributed under a communicator that nothing was put in front of."""
    assert isinstance(communicator.transport, TorchTransport)
    return communicator.transport
