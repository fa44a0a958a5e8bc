"""Transport: what a group of ranks can do, and the torch.distributed one.

A transport knows nothing of models. Every operation blocks the caller until its
result may be used (on CUDA: until it is ordered on the current stream), is bounded
by the group's time-out, and raises CommunicationError naming the operation.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from weft.kernels.reducer import Reducer

# torch 2.13 renamed these; 2.11 and 2.12 have the old names only.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class TorchTransport:
    """torch.distributed (gloo, nccl or fake); all-reduces and the exchange are the reducer's.

    ``site`` names the caller for recorders and errors.
    """

    def __init__(self, reducer: Reducer) -> None:
        self._group, self._ranks, self._named = (
            reducer.group, reducer.peers.ranks, reducer.peers.named
        )  # fmt: skip
        self.all_reduce = reducer.all_reduce
        self.all_reduce_residual_rms_norm = reducer.all_reduce_residual_rms_norm
        self.dispatch, self.combine = reducer.dispatch, reducer.combine

    def all_gather(self, tensor: torch.Tensor, dim: int, site: str) -> torch.Tensor:
        """Concatenate every rank's ``tensor`` along ``dim``, in rank order."""
        size = len(self._ranks)
        stacked = tensor.new_empty((size * tensor.shape[0], *tensor.shape[1:]))
        with self._named("all_gather", site):
            _all_gather_single(stacked, tensor.contiguous(), group=self._group)
        if dim == 0:
            return stacked
        return stacked.view(size, *tensor.shape).movedim(0, dim).flatten(dim, dim + 1)

    def reduce_scatter(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        """Sum over the group and keep this rank's equal part of dimension 0."""
        part = tensor.new_empty((tensor.shape[0] // len(self._ranks), *tensor.shape[1:]))
        with self._named("reduce_scatter", site):
            _reduce_scatter_single(part, tensor.contiguous(), group=self._group)
        return part

    def gather(self, tensor: torch.Tensor, dst: int, site: str) -> torch.Tensor | None:
        """Concatenate along the last dimension on group rank ``dst``; None elsewhere."""
        is_dst = dist.get_rank(self._group) == dst
        parts = [torch.empty_like(tensor) for _ in self._ranks] if is_dst else None
        with self._named("gather", site):
            dist.gather(tensor.contiguous(), parts, group=self._group, group_dst=dst)
        return None if parts is None else torch.cat(parts, dim=-1)

    def broadcast(self, tensor: torch.Tensor, src: int, site: str) -> torch.Tensor:
        """Overwrite ``tensor`` with that of group rank ``src``; returns it."""
        with self._named("broadcast", site):
            dist.broadcast(tensor, group=self._group, group_src=src)
        return tensor

    def send(self, tensor: torch.Tensor, dst: int, site: str) -> None:
        """Send to group rank ``dst``."""
        with self._named("send", site):
            dist.send(tensor.contiguous(), group=self._group, group_dst=dst)

    def recv(self, tensor: torch.Tensor, src: int, site: str) -> torch.Tensor:
        """Overwrite ``tensor`` with what group rank ``src`` sends; returns it."""
        with self._named("recv", site):
            dist.recv(tensor, group=self._group, group_src=src)
        return tensor

    def deepep_dispatch(self, tensor: torch.Tensor, site: str) -> torch.Tensor:  # noqa: ARG002
        """What DeepEP's kernels do, in a dry run: nothing is sent."""
        assert tensor.is_meta
        return tensor

    deepep_combine = deepep_dispatch
