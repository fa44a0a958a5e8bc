"""Memory of every rank of a group that all of them can write: allocate, exchange, release.

CUDA IPC through the driver, no private interface of torch: the memory is released
when we say so, and several ranks may share one GPU (which is how the tests run on one).
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from typing import Any

import torch.distributed as dist

from weft.errors import EnvironmentUnavailable
from weft.kernels.driver import checked, driver
from weft.kernels.vote import agree


class PeerMemory:
    """``num_bytes`` of this rank's GPU, and the addresses of the same on all ranks."""

    def __init__(
        self, group: dist.ProcessGroup, num_bytes: int, reachable: Collection[int] | None = None
    ) -> None:
        """Collective over ``group``; EnvironmentUnavailable on all ranks if one of them fails.

        reachable: the ranks whose memory is mapped (default: all); others have address 0.
        """
        self.num_bytes = num_bytes
        self.rank = dist.get_rank(group)
        self._reachable = reachable
        self._driver = driver()
        self._group = group
        self._own: int | None = None
        self._opened: dict[int, int] = {}
        handle, problem = self._allocate()
        handles = self._agree(handle, problem)
        problem = self._open(handles)
        self._agree(None, problem)
        self.addresses = tuple(self._address(rank) for rank in range(len(handles)))

    def fill(self, offset: int, num_bytes: int, byte: int) -> None:
        """Set a range of our own memory to ``byte``; complete on return."""
        assert self._own is not None
        call = self._driver.cuMemsetD8(self._own + offset, byte, num_bytes)
        checked(call, "clearing peer memory")
        checked(self._driver.cuCtxSynchronize(), "clearing peer memory")

    def unmap(self) -> None:
        """Let go of the peers' memory. Call on all ranks before any of them calls free()."""
        for address in self._opened.values():
            self._driver.cuIpcCloseMemHandle(address)
        self._opened.clear()

    def free(self) -> None:
        """Release our own memory."""
        self.unmap()
        if self._own is not None:
            self._driver.cuMemFree(self._own)
            self._own = None

    def _allocate(self) -> tuple[bytes | None, str | None]:
        try:
            size = self.num_bytes
            self._own = int(checked(self._driver.cuMemAlloc(size), f"allocating {size} bytes"))
            handle = checked(self._driver.cuIpcGetMemHandle(self._own), "sharing GPU memory")
        except EnvironmentUnavailable as error:
            return None, str(error)
        return ctypes.string_at(handle.getPtr(), 64), None

    def _open(self, handles: list[Any]) -> str | None:
        try:
            for rank, data in enumerate(handles):
                if rank != self.rank and (self._reachable is None or rank in self._reachable):
                    self._opened[rank] = self._open_one(data)
        except EnvironmentUnavailable as error:
            return str(error)
        return None

    def _open_one(self, data: bytes) -> int:
        handle = self._driver.CUipcMemHandle()
        ctypes.memmove(handle.getPtr(), data, 64)
        flag = self._driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS.value
        opened = self._driver.cuIpcOpenMemHandle(handle, flag)
        return int(checked(opened, "mapping another rank's GPU memory"))

    def _address(self, rank: int) -> int:
        assert self._own is not None
        return self._own if rank == self.rank else self._opened.get(rank, 0)

    def _agree(self, value: Any, problem: str | None) -> list[Any]:
        try:
            return agree(self._group, value, problem)
        except EnvironmentUnavailable:
            self.free()
            raise
