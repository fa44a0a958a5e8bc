"""All-reduce on the GPUs of one NVLink domain: the object that the one door holds a group.

Life: ``supported(group)`` (vote) → ``DeviceAllReduce(group)`` (collective) → calls, eager or
captured → ``check()`` after a synchronisation → ``close()`` (collective).
"""

from __future__ import annotations

import ctypes
import itertools
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist

from weft.errors import EnvironmentUnavailable, UserError
from weft.kernels import modules, selection
from weft.kernels.calibrated import agreed_selections
from weft.kernels.driver import Kernel
from weft.kernels.endpoint import CommRecord, Endpoint
from weft.kernels.modules import ELEMENTS
from weft.kernels.ordering import StreamOrder
from weft.kernels.selection import Topology, Variant
from weft.kernels.support import supported

DEFAULT_MAX_BYTES = 64 << 20
DEFAULT_TIMEOUT_S = 30.0


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
        use_fabric: bool = True,
    ) -> None:
        """Collective over ``group`` (default: the world).

        max_bytes: the largest message for the kernels; larger ones go to the backend. Costs
        about four times as much GPU memory.
        nodes: into how many equal nodes, in rank order, the group is divided.
        transport: between nodes: "peer" (GPU memory; the nodes are virtual or share an NVLink
        domain), "nvshmem" (GPU-initiated puts) or "tcp" (pinned host memory and proxies).
        timeout_s: how long a kernel waits for a rank before LostRankError.
        overlap: let a call's launch overtake the end of the kernel before it.
        use_fabric: let "auto" read this machine's fabric file (else weft's own table).
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
        self._uses: dict[tuple[int, torch.dtype], bool] = {}
        self._order = StreamOrder(self.device)
        self._open = False
        reason = supported(self.group, self.device, nodes=nodes, transport=transport)
        if reason is not None:
            raise EnvironmentUnavailable(f"weft's GPU all-reduce: {reason}")
        self.topology = Topology(num_ranks=self.num_ranks, nodes=nodes, transport=transport)
        torch.zeros(1, device=self.device)  # the primary context exists and is current
        self._measured = agreed_selections(self.group, self.topology) if use_fabric else {}
        self._end = Endpoint(self.group, self.topology, max_bytes, timeout_s)
        self._open = True
        self.handle = next(_handles)
        _communicators[self.handle] = self
        dist.barrier(self.group)  # nobody pushes before everybody has cleared

    @property
    def mailbox_bytes(self) -> int:
        """Size of one of the two mailboxes."""
        return self._end.mailbox_bytes

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
        item = tensor.element_size()
        for first in range(0, key[0], plan.piece):
            source.value = tensor.data_ptr() + first * item
            target.value = out.data_ptr() + first * item
            count.value = min(plan.piece, key[0] - first)
            plan.kernel.launch(plan.blocks, plan.threads, self.enter())
        return out

    def all_reduce_residual_rms_norm(
        self,
        tensor: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        out: torch.Tensor | None = None,
        residual_out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``residual_out = residual + all_reduce(tensor)``; return its ``weight * rms_norm``.

        tensor, residual, out, residual_out: [..., hidden]; out defaults to a new tensor,
        residual_out to the residual itself; weight: [hidden].
        The residual has the bits of the separate operations; the norm agrees with theirs within a
        few units in the last place and is the same on all ranks. A row is a multiple of 16 bytes.
        """
        from weft.kernels import residual_rms_norm

        out = torch.empty_like(tensor) if out is None else out
        residual_out = residual if residual_out is None else residual_out
        residual_rms_norm.run(self, tensor, residual, weight, epsilon, out, residual_out)
        return out

    def uses_kernel(self, num_bytes: int, dtype: torch.dtype = torch.bfloat16) -> bool:
        """Whether "auto" reduces a message of this size itself (else the backend does)."""
        key = (num_bytes, dtype)
        if key not in self._uses:
            self._uses[key] = self._choose(num_bytes, dtype, "auto") is not None
        return self._uses[key]

    # ---- faults and the end ----------------------------------------------------------------------

    def check(self) -> None:
        """Raise LostRankError if a kernel that has run so far gave up on a rank. Costs nothing.

        Call it after a synchronisation and before using results of captured graphs.
        """
        self._end.fault.raise_if_set(self.rank, self.timeout_s)

    def close(self) -> None:
        """Release the memory. Collective, unless a rank is lost; the second call does nothing."""
        if not self._open:
            return
        self._open = False
        _communicators.pop(self.handle, None)
        self._end.close(self.device)
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
            index = self.device.index
            assert index is not None
            shape = (self.num_ranks, self.topology.nodes)
            module = modules.module_for(source, *shape, dtype, index)
            if source == modules.NVSHMEM_SOURCE:
                self._end.prepare(module)
            function = module.function(name)
            self._kernels[key] = Kernel(function, arguments, overlap=self._overlap, cluster=cluster)
        return self._kernels[key]

    @property
    def comm(self) -> CommRecord:
        """The first argument of every kernel that talks to other ranks."""
        return self._end.record

    def enter(self) -> int:
        """Check for faults and order this call after the one before; the stream to launch on."""
        if not self._open:
            raise UserError("this communicator is closed; create a new one")
        if self._end.fault.record.raised:
            self.check()
        return self._order.enter()

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
        variant = self._choose(num_bytes, tensor.dtype, algorithm)
        plan = None if variant is None else self.plan_of(variant, tensor.dtype, num_bytes)
        self._plans[tensor.numel(), tensor.dtype, algorithm] = plan
        return plan

    def _choose(self, num_bytes: int, dtype: torch.dtype, algorithm: str) -> Variant | None:
        found = self._measured.get(dtype)
        pick = None if found is None else found.pick
        return selection.choose(self.topology, num_bytes, algorithm, self.mailbox_bytes, pick)

    def plan_of(self, variant: Variant, dtype: torch.dtype, num_bytes: int) -> Plan:
        """A ready launch of ``variant`` for a message of ``num_bytes``."""
        name = variant.algorithm
        arguments: list[Any] = self._end.arguments(name)
        arguments += [ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64()]
        kernel = self.kernel(modules.source_of(name), name, dtype, arguments)
        piece = min(num_bytes, self.topology.launch_bytes(variant))
        blocks = variant.blocks(piece, self.topology.sharing(name))
        return Plan(kernel, blocks, variant.threads, piece // dtype.itemsize)

    def use_variant(self, variant: Variant, dtype: torch.dtype, num_elements: int) -> None:
        """Make "auto" use ``variant`` for this size (how the tuner tries variants)."""
        num_bytes = num_elements * dtype.itemsize
        self._plans[num_elements, dtype, "auto"] = self.plan_of(variant, dtype, num_bytes)

    def _backend(self, tensor: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if out.data_ptr() != tensor.data_ptr():
            out.copy_(tensor)
        dist.all_reduce(out, group=self.group)
        return out

    def _set_epoch(self, epoch: int) -> None:
        """Pretend that ``epoch`` calls (mod 2^32) have been made; on all ranks alike (tests)."""
        self._end.set_epoch(epoch)


class Plan:
    """A kernel with its launch shape and the most elements that one launch sums."""

    __slots__ = ("blocks", "kernel", "piece", "threads")

    def __init__(self, kernel: Kernel, blocks: int, threads: int, piece: int) -> None:
        self.kernel = kernel
        self.blocks = blocks
        self.threads = threads
        self.piece = piece


def require(tensor: torch.Tensor, device: torch.device) -> None:
    """UserError unless the kernels can take ``tensor``."""
    if tensor.dtype not in ELEMENTS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in ELEMENTS)
        raise UserError(f"all_reduce takes {known}, not {tensor.dtype}; convert it first")
    if tensor.device != device:
        raise UserError(f"the tensor is on {tensor.device}, the communicator on {device}")


def find(handle: int) -> DeviceAllReduce:
    """The open communicator of a handle (what the torch operators carry)."""
    communicator = _communicators.get(handle)
    if communicator is None:
        raise UserError(f"all-reduce communicator {handle} is closed or was never opened")
    return communicator


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group is None:
        raise UserError("DeviceAllReduce needs torch.distributed; call init_process_group first")
    return group


_handles = itertools.count(1)
_communicators: WeakValueDictionary[int, DeviceAllReduce] = WeakValueDictionary()
