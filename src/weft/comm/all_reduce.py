"""All-reduce of any group on any device: one reducer a group, and the public functions.

A group of torch.distributed gets its reducer at the first call with it; the groups of a run
(weft.comm.groups) open theirs with themselves.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _world

from weft.allreduce.selection import AUTO, LIBRARY
from weft.comm.communicator import Communicator
from weft.comm.program_reducer import ProgramReducer
from weft.errors import CommunicationError, EnvironmentUnavailable, UserError
from weft.kernels import ops
from weft.kernels.reducer import Peers, Reducer
from weft.kernels.support import has_rdma, host_identity
from weft.kernels.vote import TIMEOUT_S, gather, require_open
from weft.vocabulary.conventions import check_all_reduce

Group = dist.ProcessGroup | Communicator | int | None

_log = logging.getLogger("weft")
_reducers: Final[dict[tuple[dist.ProcessGroup, torch.device], Reducer]] = {}
_opening: Final = threading.Lock()


def all_reduce(
    tensor: torch.Tensor,
    group: Group = None,
    algorithm: str = AUTO,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum ``tensor`` over a group by the fastest algorithm known for its size; returns the sum.

    group: a process group of torch.distributed, None for all ranks, or a communicator of weft.
    algorithm: ``auto``, ``library`` (nccl's or gloo's own) or the name of one of weft's.
    out: where the sum goes (default: in place). Works in captured graphs and under
    torch.compile. The first call with a group sets it up, so all of its ranks must make it,
    outside of a capture. Raises what :meth:`Reducer.all_reduce` raises, and UserError outside
    of the group or for a closed one.
    """
    if torch.compiler.is_dynamo_compiling():
        handle = _handle(group, str(tensor.device))
        if out is None:
            torch.ops.weft.all_reduce_(tensor, handle, algorithm)
            return tensor
        return out.copy_(torch.ops.weft.all_reduce(tensor, handle, algorithm))
    if type(group) is Communicator:
        return group.all_reduce(tensor, out=out, algorithm=algorithm)
    reducer = _reducer_of(group, tensor.device)
    if not reducer.busy.acquire(blocking=False):
        _two_threads(reducer)
    try:
        return reducer.all_reduce(tensor, out, algorithm=algorithm)
    finally:
        reducer.busy.release()


def all_reduce_residual_rms_norm(
    tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    group: Group = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """``residual`` += sum over the group of ``tensor``; returns ``weight * rms_norm(residual)``.

    tensor, residual, out: [..., hidden]; weight: [hidden]. One kernel where the GPU has one for
    the size. ``tensor`` keeps its values. See :func:`all_reduce` for the group and the errors.
    """
    if torch.compiler.is_dynamo_compiling():
        normed: torch.Tensor = torch.ops.weft.all_reduce_residual_rms_norm(
            tensor, residual, weight, epsilon, _handle(group, str(tensor.device))
        )
        return normed if out is None else out.copy_(normed)
    out = torch.empty_like(tensor) if out is None else out
    if type(group) is Communicator:
        total = out.copy_(tensor)
        return out.copy_(group.all_reduce_residual_rms_norm(total, residual, weight, epsilon))
    reducer = _reducer_of(group, tensor.device)
    if not reducer.busy.acquire(blocking=False):
        _two_threads(reducer)
    try:
        return reducer.all_reduce_residual_rms_norm(tensor, residual, weight, epsilon, out)
    finally:
        reducer.busy.release()


def open_reducer(
    group: dist.ProcessGroup,
    device: torch.device,
    choice: str = AUTO,
    *,
    peers: Peers | None = None,
    num_nodes: int | None = None,
    timeout_s: float = TIMEOUT_S,
    use_fabric: bool = True,
) -> Reducer:
    """The all-reduces of a group for tensors on ``device``; every rank of the group calls it.

    choice: ``auto`` (weft's where all ranks can, else the library's own, with one line saying
    why), ``weft`` (EnvironmentUnavailable where a rank cannot) or ``library``.
    num_nodes: how many (virtual) nodes the group has; found out where left out.
    use_fabric: let this machine's fabric file choose the algorithm of a size.
    """
    check_all_reduce(choice)
    if choice == LIBRARY or dist.get_world_size(group) == 1 or device.type not in ("cpu", "cuda"):
        return Reducer(group, peers)
    try:
        if device.type == "cpu":
            return ProgramReducer(
                group, peers, num_nodes=num_nodes, timeout_s=timeout_s, use_fabric=use_fabric
            )
        from weft.kernels.communicator import DeviceAllReduce

        nodes, transport = link_between_nodes(
            gather(group, (host_identity(), has_rdma())), num_nodes, insists=choice != AUTO
        )
        return DeviceAllReduce(
            group, peers=peers, device=device, nodes=nodes, transport=transport,
            use_fabric=use_fabric,
        )  # fmt: skip
    except EnvironmentUnavailable as error:
        if choice != AUTO or isinstance(error, CommunicationError):
            raise
        if dist.get_rank(group) == 0:
            _log.warning("all-reduce: every rank uses the library's own: %s", error)
        return Reducer(group, peers, reason=str(error))


def link_between_nodes(
    places: list[tuple[str, bool]], num_nodes: int | None, *, insists: bool
) -> tuple[int, str]:
    """(nodes, transport between them) of a group of GPUs.

    places: (host, whether it has RDMA) of every rank. Over RDMA the library is left alone unless
    somebody insists: EnvironmentUnavailable.
    """
    nodes = num_nodes or len({host for host, _ in places})
    if nodes == 1:
        return 1, "peer"
    if not any(rdma for _, rdma in places):
        return nodes, "tcp"
    if insists:
        return nodes, "nvshmem"
    raise EnvironmentUnavailable(
        "the nodes have RDMA, over which weft's kernels were not measured; `all_reduce` weft "
        "uses them over NVSHMEM"
    )


def _reducer_of(group: Group, device: torch.device) -> Reducer:
    if group is None:
        group = dist.group.WORLD
    reducer = _reducers.get((group, device))  # type: ignore[arg-type]
    if reducer is None or group not in _world.pg_map:
        return _first_call(group, device)
    return reducer


def _first_call(group: Group, device: torch.device) -> Reducer:
    """Open the group's reducer; forget those of groups that were destroyed."""
    if group is None:
        raise UserError(
            "all_reduce: there is no process group yet; call "
            "torch.distributed.init_process_group first, or pass a communicator"
        )
    if not isinstance(group, dist.ProcessGroup):  # torch's mark for ranks left out of a new group
        raise UserError("all_reduce: this process is not a rank of the group that it passed")
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise UserError("all_reduce: call it once with this group before the capture: it sets up")
    with _opening:
        for other, place in [key for key in _reducers if key[0] not in _world.pg_map]:
            _reducers.pop((other, place)).close(lost=True)
        require_open(group)
        if (group, device) not in _reducers:
            _check_not_elsewhere(group, device)
            _check_devices(gather(group, (device.type, _serves(group, device))))
            _reducers[group, device] = open_reducer(group, device)
        return _reducers[group, device]


def _check_not_elsewhere(group: dist.ProcessGroup, device: torch.device) -> None:
    """UserError at once, not after a wait for the others, for a device that no rank can be on."""
    for other, place in _reducers:
        if other is group and (place.type == device.type or not _serves(group, device)):
            raise UserError(f"all_reduce: the tensor is on {device}, the group's are on {place}")


def _serves(group: dist.ProcessGroup, device: torch.device) -> bool:
    try:
        group._get_backend(device)  # noqa: SLF001  torch has no public question for it
    except RuntimeError:
        return False
    return True


def _check_devices(ranks: list[tuple[str, bool]]) -> None:
    """UserError, on all ranks, where the group or one of its ranks is on another device."""
    kinds = sorted({kind for kind, _ in ranks})
    if len(kinds) > 1:
        raise UserError(
            f"all_reduce: the ranks of the group passed tensors on {' and '.join(kinds)}"
        )
    if not all(serves for _, serves in ranks):
        raise UserError(
            f"all_reduce: the tensor is on {kinds[0]}, for which the group has no backend"
        )


def _two_threads(reducer: Reducer) -> None:
    reducer.fail()
    raise CommunicationError("all_reduce: two threads use one group at once")


def _handle(group: Group, device: str) -> int:
    """What stands for the group in a compiled graph."""
    if isinstance(group, Communicator):
        raise UserError("all_reduce: pass the process group under torch.compile")
    group = getattr(group, "real_obj", group)  # torch 2.13 traces with a stand-in of the group
    return _reducer_of(group, torch.device(device)).handle


# torch.compiler.assume_constant_result without its import of all of torch._dynamo
_handle._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001
assert ops.LIBRARY is not None, "the operators of compiled graphs are registered"
