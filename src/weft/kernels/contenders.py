"""Every all-reduce that GPUs of one group can make, behind one interface, to be measured.

weft's kernels, NCCL, NCCL on symmetric buffers, and torch's one-shot and two-shot over
symmetric memory. Each brings the buffers that it wants to sum in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
import torch.distributed as dist

from weft.allreduce.selection import AUTO, BACKEND
from weft.errors import EnvironmentUnavailable, UserError, WeftError
from weft.kernels.communicator import DeviceAllReduce
from weft.kernels.selection import FLAT, GroupShape
from weft.kernels.vote import gather

SYMMETRIC: Final = "nccl_symmetric"
TORCH: Final = {"torch_one_shot": 4 << 20, "torch_two_shot": 1 << 40}
"""torch's, each with the largest message that is worth trying."""

FUSED: Final = "fused_rms_norm"
PEERS: Final = (SYMMETRIC, *TORCH)
MAX_HIDDEN: Final = 4096

_kept: Final[list[object]] = []
"""Registered memory pools: they must outlive NCCL's communicators."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """An algorithm with a place for one input.

    fresh: put this rank's input in place. call: sum; returns where the sum is.
    """

    fresh: Callable[[torch.Tensor], object]
    call: Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One all-reduce. prepare: a job for such an input, or None where it cannot sum it."""

    name: str
    prepare: Callable[[torch.Tensor], Job | None]


@dataclass(kw_only=True)
class Field:
    """The contenders that could be opened, and why others could not."""

    contenders: list[Contender] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    communicators: dict[str, DeviceAllReduce] = field(default_factory=dict)

    def close(self) -> None:
        """Release weft's communicators; collective. LostRankError where a rank was lost."""
        for communicator in self.communicators.values():
            communicator.check()
            communicator.close()


def names_of(topologies: Sequence[GroupShape]) -> tuple[str, ...]:
    """Everything that can be measured on such a group, the library's own first."""
    peer = any(topology.transport == "peer" for topology in topologies)
    weft = dict.fromkeys(name for topology in topologies for name in topology.algorithms)
    return (BACKEND, *(PEERS if peer else ()), AUTO, *weft, *((FUSED,) if peer else ()))


def open_field(
    group: dist.ProcessGroup,
    names: Sequence[str],
    topologies: Sequence[GroupShape],
    *,
    max_bytes: int,
    timeout_s: float,
    use_fabric: bool = True,
) -> Field:
    """Open ``names`` on all ranks of ``group``; collective.

    topologies: one for every transport to be measured, "auto" belonging to the first.
    """
    opened = Field()
    for topology in topologies:
        open_one = partial(
            DeviceAllReduce,
            group,
            max_bytes=max_bytes,
            nodes=topology.nodes,
            transport=topology.transport,
            timeout_s=timeout_s,
            use_fabric=use_fabric,
        )
        communicator, problem = _together(group, open_one)
        if communicator is None:
            opened.missing[f"transport {topology.transport}"] = problem
        else:
            opened.communicators[topology.transport] = communicator
    for name in names:
        contender, problem = _together(group, partial(_open, group, name, opened, max_bytes))
        if contender is None:
            opened.missing[name] = problem
        else:
            opened.contenders.append(contender)
    return opened


def _together(group: dist.ProcessGroup, make: Callable[[], Any]) -> tuple[Any, str]:
    """(what ``make`` makes, "") or (None, why not), the same on all ranks."""
    made, problem = None, ""
    try:
        made = make()
    except UserError:
        raise
    except (WeftError, RuntimeError, AttributeError, ValueError) as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
    first = next((answer for answer in gather(group, problem) if answer), "")
    return (None, first) if first else (made, "")


def _open(group: dist.ProcessGroup, name: str, opened: Field, max_bytes: int) -> Contender:
    if name == BACKEND:
        return Contender(name=name, prepare=partial(_in_place, partial(_nccl, group)))
    if name == SYMMETRIC:
        return _symmetric(group, max_bytes)
    if name in TORCH:
        return Contender(name=name, prepare=_TorchSymmetric(group, name, max_bytes).prepare)
    communicator = _communicator_for(name, opened)
    if name == FUSED:
        return Contender(name=name, prepare=partial(_fused, communicator))
    call = partial(communicator.all_reduce, algorithm=name)
    return Contender(name=name, prepare=partial(_weft, call))


def _communicator_for(name: str, opened: Field) -> DeviceAllReduce:
    wanted = FLAT[0] if name == FUSED else name
    for communicator in opened.communicators.values():
        if name == AUTO or wanted in communicator.topology.algorithms:
            return communicator
    reasons = "; ".join(opened.missing.values())
    raise EnvironmentUnavailable(reasons or f"no transport has {name}")


def _in_place(call: Callable[[torch.Tensor], object], source: torch.Tensor) -> Job:
    return _job(call, torch.empty_like(source))


def _weft(call: Callable[[torch.Tensor], object], source: torch.Tensor) -> Job | None:
    job = _in_place(call, source)
    try:
        job.fresh(source)
        job.call()
    except (UserError, EnvironmentUnavailable):
        return None  # a type or a size that this kernel does not take, on any rank
    return job


def _job(call: Callable[[torch.Tensor], object], work: torch.Tensor) -> Job:
    def run() -> torch.Tensor:
        call(work)
        return work

    return Job(fresh=work.copy_, call=run)


def _nccl(group: dist.ProcessGroup, tensor: torch.Tensor) -> None:
    dist.all_reduce(tensor, group=group)


def _symmetric(group: dist.ProcessGroup, max_bytes: int) -> Contender:
    """NCCL on a buffer of its own allocator, registered as symmetric."""
    backend: Any = group._get_backend(torch.device("cuda"))  # noqa: SLF001  torch's own recipe
    dist.all_reduce(torch.ones(8, device="cuda"), group=group)
    pool = torch.cuda.MemPool(backend.mem_allocator)
    with torch.cuda.use_mem_pool(pool):
        room = torch.empty(max_bytes, device="cuda", dtype=torch.uint8)
    backend.register_mem_pool(pool, symm=True)
    _kept.append((pool, room))

    def prepare(source: torch.Tensor) -> Job:
        work = room[: source.nbytes].view(source.dtype)
        return _job(partial(_nccl, group), work)

    return Contender(name=SYMMETRIC, prepare=prepare)


class _TorchSymmetric:
    """torch.ops.symm_mem on one shared buffer of every element type."""

    def __init__(self, group: dist.ProcessGroup, name: str, max_bytes: int) -> None:
        from torch.distributed import _symmetric_memory

        self._memory: Any = _symmetric_memory
        self._group, self._name = group, name
        self._most = min(max_bytes, TORCH[name])
        self._rooms: dict[torch.dtype, torch.Tensor] = {}
        self._room(torch.bfloat16)

    def _room(self, dtype: torch.dtype) -> torch.Tensor:
        if dtype not in self._rooms:
            room = self._memory.empty(self._most // dtype.itemsize, dtype=dtype, device="cuda")
            self._memory.rendezvous(room, self._group)
            self._rooms[dtype] = room
        return self._rooms[dtype]

    def prepare(self, source: torch.Tensor) -> Job | None:
        """None for messages that torch's kernels do not split, or that are too large."""
        if source.nbytes > self._most or source.nbytes % (16 * dist.get_world_size(self._group)):
            return None
        work = self._room(source.dtype)[: source.numel()]
        operators, name = torch.ops.symm_mem, self._group.group_name
        if self._name == "torch_two_shot":
            return _job(lambda tensor: operators.two_shot_all_reduce_(tensor, "sum", name), work)
        return Job(fresh=work.copy_, call=lambda: operators.one_shot_all_reduce(work, "sum", name))


def _fused(communicator: DeviceAllReduce, source: torch.Tensor) -> Job | None:
    """Residual and RMSNorm in the same call; the residual is 0, so it becomes the sum."""
    if source.nbytes % 16:
        return None
    hidden = min(source.numel(), MAX_HIDDEN)
    rows, rest = divmod(source.numel(), hidden)
    if rest:
        return None
    work, residual, out = (torch.empty_like(source).view(rows, hidden) for _ in range(3))
    weight = torch.ones(hidden, device=source.device, dtype=source.dtype)

    def fresh(values: torch.Tensor) -> None:
        work.copy_(values.view(rows, hidden))
        residual.zero_()

    def call() -> torch.Tensor:
        communicator.all_reduce_residual_rms_norm(work, residual, weight, 1e-5, out)
        return residual.view(-1)

    return Job(fresh=fresh, call=call)
