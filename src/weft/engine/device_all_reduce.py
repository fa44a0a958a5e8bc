"""Put weft's own GPU all-reduce in front of the backend's, where it can be used."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from weft.comm.groups import ProcessGroups
from weft.comm.transport import TorchTransport
from weft.errors import EnvironmentUnavailable, UserError

if TYPE_CHECKING:
    from weft.kernels.communicator import DeviceAllReduce

ALL_REDUCE = ("auto", "nccl", "weft")

_log = logging.getLogger("weft")


class DeviceTransport(TorchTransport):
    """torch.distributed with all-reduces by weft's kernels, chosen by size from their table."""

    def __init__(self, plain: TorchTransport, device_all_reduce: DeviceAllReduce) -> None:
        self.__dict__.update(plain.__dict__)
        self.device_all_reduce = device_all_reduce

    def all_reduce(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        if self.device_all_reduce.uses_kernel(tensor.nbytes):
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

    choice: ``nccl`` leaves it; ``auto`` exchanges it where the kernels can be used;
    ``weft`` insists. Raises EnvironmentUnavailable, UserError for another choice.
    """
    if choice not in ALL_REDUCE:
        raise UserError(f"--all-reduce {choice}: choose one of {', '.join(ALL_REDUCE)}")
    if choice == "nccl" or groups.tp.size == 1 or groups.device.type != "cuda":
        return None
    from weft.kernels.communicator import DeviceAllReduce

    plain = groups.tp.transport
    assert isinstance(plain, TorchTransport)
    try:
        device_all_reduce = DeviceAllReduce(plain.group, device=groups.device)
    except EnvironmentUnavailable as error:
        if choice == "weft":
            raise
        _log.warning("all-reduce by NCCL: %s", error)
        return None
    groups.tp.transport = DeviceTransport(plain, device_all_reduce)
    return device_all_reduce
