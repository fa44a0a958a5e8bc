"""All-reduce on the GPUs of one NVLink domain: the object that the one door holds a group.

Life: ``supported(group)`` (vote) → ``DeviceAllReduce(group)`` (collective) → calls, eager or
captured → ``check()`` after a synchronisation → ``close()`` (collective).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist

from weft.errors import EnvironmentUnavailable, UserError
from weft.kernels import nvrtc, selection
from weft.kernels.driver import Kernel, Module
from weft.kernels.fault import Fault
from weft.kernels.host_link import HostLink
from weft.kernels.peer_memory import PeerMemory
from weft.kernels.selection import Topology, Variant
from weft.kernels.support import supported

FLAT_SOURCE = "all_reduce.cu"
HIERARCHICAL_SOURCE = "hierarchical.cu"
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
DEFAULT_MAX_BYTES = 64 << 20
DEFAULT_TIMEOUT_S = 30.0

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


class DeviceAllReduce:
    """Sums over the ranks of ``group``, bitwise equal on all ranks, in fixed rank order.

    Calls on one communicator are ordered: from another stream, a call waits for the one before
    it. A captured graph must be replayed in order with the other calls of the communicator.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        nodes: int = 1,
        transport: str = "peer",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        device: torch.device | None = None,
        overlap: bool = True,
    ) -> None:
        """Collective over ``group`` (default: the world).

        max_bytes: the largest message for the kernels; larger ones go to the backend. Costs
        about four times as much GPU memory.
        nodes: into how many equal nodes, in rank order, the group is divided.
        transport: between nodes: "peer" (GPU memory; the nodes are virtual or share an NVLink
        domain) or "tcp" (pinned host memory and proxy processes).
        timeout_s: how long a kernel waits for a rank before LostRankError.
        overlap: let a call's launch overtake the end of the kernel before it.
        Raises EnvironmentUnavailable, on every rank, where the kernels cannot be used.
        """
        self.group = group if group is not None else _world()
        self.rank = dist.get_rank(self.group)
        self.num_ranks = dist.get_world_size(self.group)
        self.timeout_s = timeout_s
        self.device = device or torch.device("cuda", torch.cuda.current_device())
        self._overlap = overlap
        self._kernels: dict[tuple[str, torch.dtype, int], Kernel] = {}
        self._plans: dict[tuple[int, torch.dtype, str], Plan | None] = {}
        self._host_link: HostLink | None = None
        self._last_stream: torch.cuda.Stream | None = None
        self._last_handle = -1
        self._memory: PeerMemory | None = None
        reason = supported(self.group, self.device, nodes=nodes, transport=transport)
        if reason is not None:
            raise EnvironmentUnavailable(f"weft's GPU all-reduce: {reason}")
        self.topology = Topology(num_ranks=self.num_ranks, nodes=nodes, transport=transport)
        torch.zeros(1, device=self.device)  # the primary context exists and is current
        self._set_up(max_bytes)
        self.handle = next(_handles)
        _open[self.handle] = self
        dist.barrier(self.group)  # nobody pushes before everybody has cleared

    def _set_up(self, max_bytes: int) -> None:
        self.mailbox_bytes = selection.capacity(self.topology, max_bytes)
        size = HEADER_BYTES + 2 * self.mailbox_bytes
        node = self.rank // self.topology.ranks_per_node
        first = node * self.topology.ranks_per_node
        over_tcp = self.topology.transport == "tcp"
        reachable = range(first, first + self.topology.ranks_per_node) if over_tcp else None
        self._memory = PeerMemory(self.group, size, reachable)
        self._memory.fill(0, HEADER_BYTES, 0)
        self._memory.fill(HEADER_BYTES, 2 * self.mailbox_bytes, 0xFF)
        self._fault = Fault()
        self._comm = self._record()
        if over_tcp:
            self._host_link = HostLink(self.group, self.topology, max_bytes)

    # ---- calls -------------------------------------------------------------------------------

    def all_reduce(
        self, tensor: torch.Tensor, out: torch.Tensor | None = None, *, algorithm: str = "auto"
    ) -> torch.Tensor:
        """Sum ``tensor`` over the ranks into ``out`` (default: in place) and return it.

        tensor, out: contiguous, fp32, fp16 or bf16, any number of elements, any alignment.
        algorithm: "auto", "backend" (torch.distributed's own) or one of topology.algorithms.
        Raises LostRankError if an earlier call ran past its bound, UserError for other tensors.
        """
        out = tensor if out is None else out
        self._check(tensor, out)
        key = (tensor.numel(), tensor.dtype, algorithm)
        plan = self._plans[key] if key in self._plans else self._plan(tensor, algorithm)
        if key[0] == 0:
            return out
        if plan is None:
            return self._backend(tensor, out)
        source, target, count = plan.kernel.arguments[-3:]
        source.value, target.value, count.value = tensor.data_ptr(), out.data_ptr(), key[0]
        plan.kernel.launch(plan.blocks, plan.threads, self._enter())
        return out

    def all_reduce_residual_rms_norm(
        self,
        tensor: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``residual += all_reduce(tensor)``, then return ``weight * rms_norm(residual)``.

        tensor, residual, out: [..., hidden], out defaults to a new tensor; weight: [hidden].
        The residual has the bits of the separate operations; the norm agrees with theirs within a
        few units in the last place and is the same on all ranks. A row is a multiple of 16 bytes.
        """
        from weft.kernels import residual_rms_norm

        out = torch.empty_like(tensor) if out is None else out
        residual_rms_norm.run(self, tensor, residual, weight, epsilon, out)
        return out

    def uses_kernel(self, num_bytes: int) -> bool:
        """Whether "auto" reduces a message of this size itself (else the backend does)."""
        chosen = selection.choose(self.topology, num_bytes, "auto", self.mailbox_bytes)
        return chosen is not None

    # ---- faults and the end ----------------------------------------------------------------------

    def check(self) -> None:
        """Raise LostRankError if a kernel that has run so far gave up on a rank. Costs nothing.

        Call it after a synchronisation and before using results of captured graphs.
        """
        self._fault.raise_if_set(self.rank, self.timeout_s)

    def close(self) -> None:
        """Release the memory. Collective, unless a rank is lost; the second call does nothing."""
        if self._memory is None:
            return
        memory, self._memory = self._memory, None
        _open.pop(self.handle, None)
        torch.cuda.synchronize(self.device)
        lost = bool(self._fault.record.raised)
        if not lost:
            dist.barrier(self.group)  # nobody's last words are under way any more
        memory.unmap()
        if not lost:
            dist.barrier(self.group)
        memory.free()
        self._fault.free()
        if self._host_link is not None:
            self._host_link.close()
        self._kernels.clear()
        self._plans.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()

    # ---- inside ------------------------------------------------------------------------------------

    def kernel(
        self, source: str, name: str, dtype: torch.dtype, arguments: list[Any], cluster: int = 1
    ) -> Kernel:
        """A kernel of this communicator with its arguments, made once."""
        key = (name, dtype, cluster)
        if key not in self._kernels:
            function = self.module(source, dtype).function(name)
            self._kernels[key] = Kernel(function, arguments, overlap=self._overlap, cluster=cluster)
        return self._kernels[key]

    @property
    def comm(self) -> CommRecord:
        """The first argument of every kernel that talks to other ranks."""
        return self._comm

    def module(self, source: str, dtype: torch.dtype) -> Module:
        """The compiled source for this group size, element type and GPU."""
        assert self.device.index is not None
        nodes = self.topology.nodes if source == HIERARCHICAL_SOURCE else 0
        return load_module(source, self.num_ranks, nodes, dtype, self.device.index)

    def enter(self) -> int:
        """Check for faults and order this call after the one before; the stream to launch on."""
        return self._enter()

    def _check(self, tensor: torch.Tensor, out: torch.Tensor) -> None:
        require(tensor, self.device)
        if not tensor.is_contiguous():
            raise UserError("all_reduce takes contiguous tensors; call .contiguous() first")
        if out is tensor:
            return
        alike = (out.shape, out.dtype, out.device) == (tensor.shape, tensor.dtype, tensor.device)
        if not alike or not out.is_contiguous():
            raise UserError(f"out is {out.dtype} {list(out.shape)}, not like the tensor")

    def _plan(self, tensor: torch.Tensor, algorithm: str) -> Plan | None:
        num_bytes = tensor.numel() * tensor.element_size()
        variant = selection.choose(self.topology, num_bytes, algorithm, self.mailbox_bytes)
        plan = None if variant is None else self.plan_of(variant, tensor.dtype, num_bytes)
        self._plans[tensor.numel(), tensor.dtype, algorithm] = plan
        return plan

    def plan_of(self, variant: Variant, dtype: torch.dtype, num_bytes: int) -> Plan:
        """A ready launch of ``variant`` for a message of ``num_bytes``."""
        name = variant.algorithm
        flat = name in selection.FLAT
        arguments: list[Any] = [self._comm]
        if not flat:
            arguments.append(self._link_record())
        arguments += [ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64()]
        source = FLAT_SOURCE if flat else HIERARCHICAL_SOURCE
        kernel = self.kernel(source, name, dtype, arguments)
        return Plan(kernel, variant.blocks(num_bytes, self.topology.sharing(name)), variant.threads)

    def _link_record(self) -> ctypes.Structure | ctypes.c_uint64:
        return self._host_link.record if self._host_link else ctypes.c_uint64()

    def use_variant(self, variant: Variant, dtype: torch.dtype, num_elements: int) -> None:
        """Make "auto" use ``variant`` for this size (how the tuner tries variants)."""
        num_bytes = num_elements * dtype.itemsize
        self._plans[num_elements, dtype, "auto"] = self.plan_of(variant, dtype, num_bytes)

    def _backend(self, tensor: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if out.data_ptr() != tensor.data_ptr():
            out.copy_(tensor)
        dist.all_reduce(out, group=self.group)
        return out

    def _enter(self) -> int:
        if self._memory is None:
            raise UserError("this communicator is closed; create a new one")
        if self._fault.record.raised:
            self.check()
        stream = torch.cuda.current_stream(self.device)
        handle = stream.cuda_stream
        if handle != self._last_handle:
            self._order(stream)
            self._last_stream, self._last_handle = stream, handle
        return handle

    def _order(self, stream: torch.cuda.Stream) -> None:
        """Make ``stream`` wait for the last call, where both belong to the same timeline."""
        last = self._last_stream
        if last is None or capturing(last) != capturing(stream):
            return
        stream.wait_stream(last)

    def _record(self) -> CommRecord:
        assert self._memory is not None
        addresses = self._memory.addresses
        record = CommRecord(
            fault=self._fault.device_address,
            mailbox_bytes=self.mailbox_bytes,
            timeout_ns=int(self.timeout_s * 1e9),
            rank=self.rank,
        )
        for step in range(self.num_ranks):
            record.peer[step] = addresses[(self.rank + step) % self.num_ranks]
        return record

    def _set_epoch(self, epoch: int) -> None:
        """Pretend that ``epoch`` calls (mod 2^32) have been made; on all ranks alike (tests)."""
        assert self._memory is not None
        word = (epoch % 2**32).to_bytes(4, "little")
        self._memory.write(EPOCH_OFFSET, word * selection.MAX_BLOCKS)
        self._memory.write(ENTERED_OFFSET, word * 32)
        dist.barrier(self.group)


class Plan:
    """A kernel with its launch shape."""

    __slots__ = ("blocks", "kernel", "threads")

    def __init__(self, kernel: Kernel, blocks: int, threads: int) -> None:
        self.kernel = kernel
        self.blocks = blocks
        self.threads = threads


def require(tensor: torch.Tensor, device: torch.device) -> None:
    """UserError unless the kernels can take ``tensor``."""
    if tensor.dtype not in ELEMENTS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in ELEMENTS)
        raise UserError(f"all_reduce takes {known}, not {tensor.dtype}; convert it first")
    if tensor.device != device:
        raise UserError(f"the tensor is on {tensor.device}, the communicator on {device}")


def find(handle: int) -> DeviceAllReduce:
    """The open communicator of a handle (what the torch operators carry)."""
    communicator = _open.get(handle)
    if communicator is None:
        raise UserError(f"all-reduce communicator {handle} is closed or was never opened")
    return communicator


@cache
def load_module(
    source: str, num_ranks: int, nodes: int, dtype: torch.dtype, device_index: int
) -> Module:
    """Compile (or find) and load a source; the device must be current. nodes: 0 if unused."""
    major, minor = torch.cuda.get_device_capability(device_index)
    defines = {"WEFT_WORLD": num_ranks, "WEFT_ELEMENT": ELEMENTS[dtype]}
    if nodes:
        defines["WEFT_NODES"] = nodes
    return Module(nvrtc.compile_source(source, defines, f"sm_{major}{minor}"))


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group is None:
        raise UserError("DeviceAllReduce needs torch.distributed; call init_process_group first")
    return group


def _stream_capture_id() -> Callable[[int], int]:
    from weft.kernels.driver import driver

    module = driver()

    def identify(stream: int) -> int:
        status, capture, identifier, *_ = module.cuStreamGetCaptureInfo(stream)
        active = module.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE
        return int(identifier) if int(status) == 0 and capture == active else 0

    return identify


def capturing(stream: torch.cuda.Stream) -> int:
    """The identity of the graph that ``stream`` is captured into, 0 if none."""
    return _capture_id()(stream.cuda_stream)


_capture_id = cache(_stream_capture_id)
_handles = itertools.count(1)
_open: WeakValueDictionary[int, DeviceAllReduce] = WeakValueDictionary()
