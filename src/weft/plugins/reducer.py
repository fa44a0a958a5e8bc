"""What the engines' plugins share: a group's reducer, opened by a vote, and its fused operator."""

from __future__ import annotations

import os
import threading
from typing import Any, Final

import torch

from weft.comm.all_reduce import open_reducer
from weft.errors import LostRankError, WeftError
from weft.kernels.reducer import Reducer
from weft.plugins.switch import log

LOST_RANK_EXIT: Final = 3
WATCH_S: Final = 0.2


class EngineReducer:
    """The all-reduces of one of an engine's groups, as weft makes them."""

    def __init__(self, reducer: Reducer) -> None:
        self._weft = reducer
        if reducer.name == "weft":
            threading.Thread(target=self._watch, name="weft", daemon=True).start()

    def takes(self, tensor: torch.Tensor) -> bool:
        """Whether weft reduces this tensor; the engine's own way is for the others."""
        return tensor.is_contiguous() and self._weft.takes(tensor)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the group, in a new tensor."""
        return self._weft.all_reduce(tensor, torch.empty_like(tensor))

    def fused(
        self, partial: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(weight * rms_norm(new residual), new residual), both new tensors."""
        norm, total = torch.empty_like(partial), torch.empty_like(residual)
        self._weft.all_reduce_residual_rms_norm(
            partial, residual, weight, epsilon, norm, residual_out=total
        )
        return norm, total

    def _watch(self) -> None:
        """End the process when a rank is lost: the engine would compute on, or wait for ever."""
        pause = threading.Event()
        while not pause.wait(WATCH_S):
            try:
                self._weft.check()
            except LostRankError as error:
                log.error("weft: %s", error)
                os._exit(LOST_RANK_EXIT)


def reducer_for(
    name: str, group: Any, device: torch.device, num_nodes: int | None = None
) -> EngineReducer | None:
    """The reducer of an engine's group, or None on all its ranks; collective, never raises.

    name: the engine's name of the group; group: its process group of torch.distributed.
    Rank 0 says once what is used, or why not.
    """
    try:
        opened = open_reducer(group, device, "weft", num_nodes=num_nodes)
    except (WeftError, RuntimeError) as error:
        log.warning("weft: all-reduce of group %s stays the engine's own: %s", name, error)
        return None
    if opened.rank == 0:
        shape = f"{opened.num_ranks} ranks, {device.type}"
        log.warning("weft: all-reduce of group %s (%s) by weft", name, shape)
    reducer = _reducers[name] = EngineReducer(opened)
    return reducer


def reducer_of(name: str) -> EngineReducer | None:
    """The reducer that was opened for an engine's group, if any."""
    return _reducers.get(name)


_reducers: Final[dict[str, EngineReducer]] = {}


@torch.library.custom_op("weft::engine_all_reduce_residual_rms_norm", mutates_args=())
def all_reduce_residual_rms_norm(
    partial: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float, group: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """See :meth:`EngineReducer.fused`; ``group`` names the reducer, shapes [tokens, hidden]."""
    return _reducers[group].fused(partial, residual, weight, epsilon)


@all_reduce_residual_rms_norm.register_fake
def _(
    partial: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float, group: str
) -> Any:
    del weight, epsilon, group
    return torch.empty_like(partial), torch.empty_like(residual)
