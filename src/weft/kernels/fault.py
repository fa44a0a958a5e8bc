"""The one message that a kernel can send to the host: a rank did not come."""

from __future__ import annotations

import ctypes

from weft.errors import LostRankError
from weft.kernels.driver import checked, driver

# Step numbers of comm.cuh.
STEPS = {
    0: "entering",
    1: "exchange",
    2: "reduce-scatter",
    3: "all-gather",
    4: "exchange between nodes",
    5: "dispatch",
    6: "combine",
}

EXCHANGE = (5, 6)


class FaultRecord(ctypes.Structure):
    """``struct Fault`` of comm.cuh, in pinned host memory that kernels write."""

    _fields_ = (
        ("raised", ctypes.c_uint32),
        ("missing", ctypes.c_uint32),
        ("step", ctypes.c_uint32),
        ("epoch", ctypes.c_uint32),
    )


class Fault:
    """A FaultRecord in pinned memory: read on the host at no cost, written by the GPU."""

    def __init__(self) -> None:
        self._driver = driver()
        flags = self._driver.CU_MEMHOSTALLOC_PORTABLE | self._driver.CU_MEMHOSTALLOC_DEVICEMAP
        size = ctypes.sizeof(FaultRecord)
        self._host = int(checked(self._driver.cuMemHostAlloc(size, flags), "pinning host memory"))
        ctypes.memset(self._host, 0, size)
        self.record = FaultRecord.from_address(self._host)
        pointer = self._driver.cuMemHostGetDevicePointer(self._host, 0)
        self.device_address = int(checked(pointer, "mapping pinned memory"))

    def raise_if_set(self, rank: int, timeout_s: float) -> None:
        """Raise LostRankError if a kernel gave up."""
        if self.record.raised:
            raise LostRankError(describe(self.record, rank, timeout_s))

    def free(self) -> None:
        """Release the pinned memory; the record may not be read afterwards."""
        if self._host:
            self.record = FaultRecord()
            self._driver.cuMemFreeHost(self._host)
            self._host = 0


def describe(record: FaultRecord, rank: int, timeout_s: float) -> str:
    """One line that names the missing ranks, the step and the epoch."""
    missing = [r for r in range(32) if record.missing >> r & 1]
    names = ", ".join(f"{r} (this rank, too late)" if r == rank else str(r) for r in missing)
    step = STEPS.get(record.step, f"step {record.step}")
    what = "exchange with experts" if record.step in EXCHANGE else "all-reduce"
    return (
        f"{what} on rank {rank}: rank {names} did not come within {timeout_s:g} s "
        f"(step {step}, epoch {record.epoch}); create a new communicator to go on"
    )
