"""All-reduce on the GPUs of one NVLink domain: the object that the one door holds a group.

Life: ``supported(group)`` (vote) → ``DeviceAllReduce(group)`` (collective) → calls, eager or
captured → ``check()`` after a synchronisation → ``close()`` (collective).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from weft.allreduce.selection import AUTO
from weft.errors import EnvironmentUnavailable, UserError
from weft.fabric.local import device_fabric
from weft.kernels import exchange_kernels, modules, residual_rms_norm, selection
from weft.kernels.driver import Kernel
from weft.kernels.endpoint import CommRecord, Endpoint
from weft.kernels.modules import ELEMENTS
from weft.kernels.ordering import StreamOrder
from weft.kernels.reducer import AddNorm, Peers, Reducer, add_rms_norm, agreed_selections, check_out
from weft.kernels.selection import GroupShape, Variant
from weft.kernels.support import supported
from weft.vocabulary.routes import Routes

DEFAULT_MAX_BYTES = 64 << 20
DEFAULT_TIMEOUT_S = 30.0


class DeviceAllReduce(Reducer):
    """Sums over the ranks of ``group``, bitwise equal on all ranks, in fixed rank order.

    Calls on one communicator are ordered: from another stream, a call waits for the one before
    it. A captured graph must be replayed in order with the other calls of the communicator.
    """

    name: Literal["library", "weft"] = "weft"

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
        peers: Peers | None = None,
    ) -> None:
        """Collective over ``group`` (default: the world).

        max_bytes: the largest message for the kernels; larger ones go to the library. Costs
        about four times as much GPU memory.
        nodes: into how many equal nodes, in rank order, the group is divided.
        transport: between nodes: "peer" (GPU memory; the nodes are virtual or share an NVLink
        domain), "nvshmem" (GPU-initiated puts) or "tcp" (pinned host memory and proxies).
        timeout_s: how long a kernel waits for a rank before LostRankError.
        overlap: let a call's launch overtake the end of the kernel before it.
        use_fabric: let "auto" read this machine's fabric file (else weft's own table).
        Raises EnvironmentUnavailable, on every rank, where the kernels cannot be used.
        """
        super().__init__(group if group is not None else _world(), peers)
        self._open = False
        self.timeout_s = timeout_s
        self.device = device or torch.device("cuda", torch.cuda.current_device())
        self._overlap = overlap
        self._kernels: dict[tuple[str, torch.dtype, int], Kernel] = {}
        self._plans: dict[tuple[int, torch.dtype, str], KernelLaunch | None] = {}
        self._order = StreamOrder(self.device)
        reason = supported(self.group, self.device, nodes=nodes, transport=transport)
        if reason is not None:
            raise EnvironmentUnavailable(f"weft's GPU all-reduce: {reason}")
        self.topology = GroupShape(num_ranks=self.num_ranks, nodes=nodes, transport=transport)
        torch.zeros(1, device=self.device)  # the primary context exists and is current
        self._selections = agreed_selections(
            self.group,
            device_fabric if use_fabric else lambda: None,
            tuple(ELEMENTS),
            nodes=nodes,
            algorithms=self.algorithms,
            default=self.topology.table(),
        )
        self._end = Endpoint(self.group, self.topology, max_bytes, timeout_s)
        self._open = True
        dist.barrier(self.group)  # nobody pushes before everybody has cleared

    @property
    def algorithms(self) -> tuple[str, ...]:
        """See Reducer."""
        return self.topology.algorithms

    @property
    def mailbox_bytes(self) -> int:
        """Size of one of the two mailboxes."""
        return self._end.mailbox_bytes

    # ---- calls -------------------------------------------------------------------------------

    def takes(self, tensor: torch.Tensor) -> bool:
        """See Reducer."""
        key = (tensor.numel(), tensor.dtype, AUTO)
        plan = self._plans[key] if key in self._plans else self._plan(tensor, AUTO)
        return plan is not None

    def all_reduce(
        self,
        tensor: torch.Tensor,
        out: torch.Tensor | None = None,
        *,
        algorithm: str = AUTO,
        site: str = "",
    ) -> torch.Tensor:
        """Sum ``tensor`` over the ranks into ``out`` (default: in place) and return it.

        tensor, out: fp32, fp16 or bf16, any number of elements, any alignment; other types and
        sizes go to the library. algorithm: "auto", "library" or one of ``algorithms``.
        Raises LostRankError if an earlier call ran past its bound.
        """
        if tensor.device != self.device:
            raise UserError(f"the tensor is on {tensor.device}, the group's are on {self.device}")
        if out is None:
            out = tensor
        elif out is not tensor:
            check_out(tensor, out)
        if not tensor.is_contiguous() or (out is not tensor and not out.is_contiguous()):
            flat = tensor.clone(memory_format=torch.contiguous_format)
            return out.copy_(self.all_reduce(flat, algorithm=algorithm, site=site))
        key = (tensor.numel(), tensor.dtype, algorithm)
        plan = self._plans[key] if key in self._plans else self._plan(tensor, algorithm)
        if key[0] == 0:
            return out
        if plan is None:
            return self.by_library(tensor, out, site)
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
        *,
        site: str = "",
        add_norm: AddNorm = add_rms_norm,
    ) -> torch.Tensor:
        """See Reducer; ``tensor`` keeps its values where the kernels take it.

        The residual has the bits of the separate operations; the norm agrees with theirs within a
        few units in the last place and is the same on all ranks. The kernels take contiguous rows
        of a multiple of 16 bytes, aligned; others are composed.
        """
        target = torch.empty_like(tensor) if out is None else out
        kept = residual if residual_out is None else residual_out
        if not residual_rms_norm.takes(tensor, residual, weight, target, kept, self.device):
            return super().all_reduce_residual_rms_norm(
                tensor, residual, weight, epsilon, out, residual_out, site=site, add_norm=add_norm
            )
        residual_rms_norm.run(self, tensor, residual, weight, epsilon, target, kept)
        return target

    def dispatch(
        self, rows: torch.Tensor, routes: Routes, *, site: str = ""
    ) -> tuple[torch.Tensor, Routes]:
        """See Reducer. Up to 256 rows of whole 16-byte vectors within an NVLink domain."""
        if not exchange_kernels.takes(self, rows, routes):
            return super().dispatch(rows, routes, site=site)
        return exchange_kernels.dispatch(self, rows, routes)

    def combine(self, partial: torch.Tensor, routes: Routes, *, site: str = "") -> torch.Tensor:
        """See Reducer."""
        if routes.passages is None:
            return super().combine(partial, routes, site=site)
        return exchange_kernels.combine(self, partial, routes.passages)

    # ---- faults and the end ----------------------------------------------------------------------

    def check(self) -> None:
        """Raise LostRankError if a kernel that has run so far gave up on a rank. Costs nothing.

        Call it after a synchronisation and before using results of captured graphs.
        """
        self._end.fault.raise_if_set(self.rank, self.timeout_s)

    def close(self, *, lost: bool = False) -> None:
        """Release the memory. Collective, unless a rank is lost; the second call does nothing."""
        if not self._open:
            return
        super().close(lost=lost)
        self._end.close(self.device, lost=lost)
        self._kernels.clear()
        self._plans.clear()

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
            self.require_open()
        if self._end.fault.record.raised:
            self.check()
        return self._order.enter()

    def _plan(self, tensor: torch.Tensor, algorithm: str) -> KernelLaunch | None:
        self.require_open()
        name, plan = self.check_name(algorithm), None
        variant = self._choose(tensor.nbytes, tensor.dtype, name)
        if variant is not None:
            plan = self.plan_of(variant, tensor.dtype, tensor.nbytes)
        self._plans[tensor.numel(), tensor.dtype, algorithm] = plan
        return plan

    def _choose(self, num_bytes: int, dtype: torch.dtype, algorithm: str) -> Variant | None:
        found = self._selections.get(dtype)
        if found is not None:
            room = self.mailbox_bytes
            return selection.choose(self.topology, num_bytes, algorithm, room, found.pick)
        if algorithm in self.algorithms:
            raise EnvironmentUnavailable(
                f"algorithm {algorithm}: not usable here: it adds {_KNOWN}"
            )
        return None

    def plan_of(self, variant: Variant, dtype: torch.dtype, num_bytes: int) -> KernelLaunch:
        """A ready launch of ``variant`` for a message of ``num_bytes``."""
        name = variant.algorithm
        arguments: list[Any] = self._end.arguments(name)
        arguments += [ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_uint64()]
        kernel = self.kernel(modules.source_of(name), name, dtype, arguments)
        piece = min(num_bytes, self.topology.launch_bytes(variant))
        blocks = variant.blocks(piece, self.topology.sharing(name))
        return KernelLaunch(kernel, blocks, variant.threads, piece // dtype.itemsize)

    def use_variant(self, variant: Variant, dtype: torch.dtype, num_elements: int) -> None:
        """Make "auto" use ``variant`` for this size (how the tuner tries variants)."""
        num_bytes = num_elements * dtype.itemsize
        self._plans[num_elements, dtype, "auto"] = self.plan_of(variant, dtype, num_bytes)


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """A kernel with its launch shape and the most elements that one launch sums."""

    kernel: Kernel
    blocks: int
    threads: int
    piece: int


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group is None:
        raise UserError("DeviceAllReduce needs torch.distributed; call init_process_group first")
    return group


_KNOWN = ", ".join(str(dtype).removeprefix("torch.") for dtype in ELEMENTS)
