"""Whether the GPU kernels can be used here, and if not, why: one line, the same on all ranks."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from weft.errors import EnvironmentUnavailable
from weft.kernels import nvrtc, nvshmem
from weft.kernels.driver import driver
from weft.kernels.selection import BETWEEN_NODES, MAX_RANKS
from weft.kernels.vote import gather

TRANSPORTS = tuple(BETWEEN_NODES)
MIN_CAPABILITY = (9, 0)  # clusters and dependent launches
RDMA_DEVICES = Path("/sys/class/infiniband")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one rank runs and what keeps it from using the kernels (None: nothing)."""

    host: str
    device_uuid: str
    capability: tuple[int, int]
    problem: str | None


def local_problem(device: torch.device | None = None, transport: str = "peer") -> str | None:
    """Why this process cannot use the kernels, or None. Starts no process group."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below 9.0"
    try:
        driver()
        nvrtc.version()
    except EnvironmentUnavailable as error:
        return str(error)
    return nvshmem.problem() if transport == "nvshmem" else None


def supported(
    group: dist.ProcessGroup,
    device: torch.device | None = None,
    *,
    nodes: int = 1,
    transport: str = "peer",
) -> str | None:
    """Why ``group`` cannot use the kernels, or None. Collective; the same answer on all ranks.

    nodes, transport: as for DeviceAllReduce.
    """
    return verdict(gather(group, _place(device, transport)), nodes, transport)


def verdict(places: list[Place], nodes: int = 1, transport: str = "peer") -> str | None:
    """The decision that every rank takes from what all ranks said."""
    problems = (
        _group_problem(len(places), nodes, transport),
        next((f"rank {r}: {p.problem}" for r, p in enumerate(places) if p.problem), None),
    )
    for problem in problems:
        if problem is not None:
            return problem
    if len({place.capability for place in places}) > 1:
        return "the ranks have GPUs of different kinds"
    return _host_problem(places, 1 if transport == "peer" else nodes) or _peer_problem(places)


def _group_problem(num_ranks: int, nodes: int, transport: str) -> str | None:
    if transport not in TRANSPORTS:
        return f"unknown transport {transport!r}; known: {', '.join(TRANSPORTS)}"
    if num_ranks < 2:
        return "a group of one rank has nothing to reduce"
    if num_ranks > MAX_RANKS:
        return f"{num_ranks} ranks; the kernels take at most {MAX_RANKS}"
    if nodes < 1 or num_ranks % nodes:
        return f"{num_ranks} ranks do not make {nodes} equal nodes"
    return None


def _host_problem(places: list[Place], nodes: int) -> str | None:
    size = len(places) // nodes
    for first in range(0, len(places), size):
        if len({place.host for place in places[first : first + size]}) > 1:
            return f"ranks {first} to {first + size - 1} are on several hosts"
    return None


def _peer_problem(places: list[Place]) -> str | None:
    """Every GPU visible here must be able to reach every other one of the group."""
    uuids = {place.device_uuid for place in places}
    visible = [i for i in range(torch.cuda.device_count()) if _uuid(i) in uuids]
    for one in visible:
        for other in visible:
            if one != other and not torch.cuda.can_device_access_peer(one, other):
                return f"GPU {one} cannot reach the memory of GPU {other}"
    return None


def _place(device: torch.device | None, transport: str) -> Place:
    problem = local_problem(device, transport)
    if not torch.cuda.is_available():
        return Place(host=host_identity(), device_uuid="", capability=(0, 0), problem=problem)
    index = torch.cuda.current_device() if device is None else device.index
    return Place(
        host=host_identity(),
        device_uuid=_uuid(index),
        capability=torch.cuda.get_device_capability(index),
        problem=problem,
    )


def _uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)


def has_rdma() -> bool:
    """Whether this machine has an InfiniBand or RoCE device."""
    return RDMA_DEVICES.is_dir() and any(RDMA_DEVICES.iterdir())


def host_identity() -> str:
    """Name and boot of this machine: containers may share the one, hosts not the other."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.is_file() else ''}"
