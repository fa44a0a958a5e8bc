"""What one rank of a communicator owns: mailboxes, the fault word, the link between nodes."""

from __future__ import annotations

import ctypes

import torch
import torch.distributed as dist

from weft.errors import EnvironmentUnavailable
from weft.kernels import selection
from weft.kernels.driver import Module
from weft.kernels.fault import Fault
from weft.kernels.host_link import HostLink
from weft.kernels.nvshmem import ShmemLink
from weft.kernels.peer_memory import PeerMemory
from weft.kernels.selection import GroupShape

# Layout of ``struct Header`` in comm.cuh.
HEADER_BYTES = 4096
ENTERED_OFFSET = 128
EPOCH_OFFSET = 256


class CommRecord(ctypes.Structure):
    """``struct Comm`` of comm.cuh."""

    _fields_ = (
        ("peer", ctypes.c_uint64 * 8),
        ("fault", ctypes.c_uint64),
        ("mailbox_bytes", ctypes.c_uint64),
        ("timeout_ns", ctypes.c_uint64),
        ("rank", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class Endpoint:
    """Memory that peers write, set up and released by all ranks of a group together."""

    def __init__(
        self, group: dist.ProcessGroup, topology: GroupShape, max_bytes: int, timeout_s: float
    ) -> None:
        """Collective; nobody may call a kernel before a barrier after it."""
        self._group, self._topology = group, topology
        self._rank = dist.get_rank(group)
        self.mailbox_bytes = selection.capacity(topology, max_bytes)
        self.memory = PeerMemory(
            group, HEADER_BYTES + 2 * self.mailbox_bytes, topology.reachable(self._rank)
        )
        self.memory.fill(0, HEADER_BYTES, 0)
        self.memory.fill(HEADER_BYTES, 2 * self.mailbox_bytes, 0xFF)
        self.fault = Fault()
        try:
            self.link = self._open_link(max_bytes)
        except EnvironmentUnavailable:
            self.memory.free()
            self.fault.free()
            raise
        self.record = self._record(timeout_s)

    def _open_link(self, max_bytes: int) -> HostLink | ShmemLink | None:
        if self._topology.transport == "tcp":
            return HostLink(self._group, self._topology, max_bytes)
        if self._topology.transport == "nvshmem":
            return ShmemLink(self._group, self._topology, max_bytes)
        return None

    def arguments(self, algorithm: str) -> list[ctypes.Structure | ctypes.c_uint64]:
        """The first arguments of an all-reduce kernel."""
        if algorithm in selection.FLAT:
            return [self.record]
        return [self.record, self.link.record if self.link else ctypes.c_uint64()]

    def prepare(self, module: Module) -> None:
        """What a module needs before its first launch."""
        if isinstance(self.link, ShmemLink):
            self.link.load(module)

    def close(self, device: torch.device, *, lost: bool = False) -> None:
        """Release everything. Collective, unless a rank is lost: then it waits for nobody."""
        torch.cuda.synchronize(device)
        lost = lost or bool(self.fault.record.raised)
        if not lost:
            dist.barrier(self._group)  # nobody's last words are under way any more
        self.memory.unmap()
        if not lost:
            dist.barrier(self._group)
        self.memory.free()
        self.fault.free()
        if self.link is not None:
            self.link.close(lost=lost)

    def _record(self, timeout_s: float) -> CommRecord:
        addresses = self.memory.addresses
        record = CommRecord(
            fault=self.fault.device_address,
            mailbox_bytes=self.mailbox_bytes,
            timeout_ns=int(timeout_s * 1e9),
            rank=self._rank,
        )
        for step in range(len(addresses)):
            record.peer[step] = addresses[(self._rank + step) % len(addresses)]
        return record
