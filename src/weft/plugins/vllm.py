"""vLLM's tensor-parallel all-reduce through weft's inside its own processes.

vLLM runs :data:`PARTS` in every process before its groups exist. Two things change: the
device communicators ask weft's reducer first, and on GPUs a pass over the compiled graph joins
an all-reduce with the residual and RMSNorm behind it. What is there is probed; a part that a
version lacks stays vLLM's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import torch

from weft.plugins.reducer import EngineReducer, reducer_for


def _wrap_communicator(module: str, name: str) -> None:
    path = f"vllm.distributed.device_communicators.{module}"
    communicator = getattr(__import__(path, fromlist=[name]), name)
    if not hasattr(communicator, "_weft_wrapped"):
        communicator._weft_wrapped = True  # noqa: SLF001 - a mark of ours
        communicator.__init__ = _opening(communicator.__init__)
        communicator.all_reduce = _reducing(communicator.all_reduce)


def _opening(init: Any) -> Any:
    @functools.wraps(init)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: N807
        init(self, *arguments, **options)
        self.weft = None
        name = str(getattr(self, "unique_name", ""))
        if name.startswith("tp") and self.world_size > 1:
            self.weft = reducer_for(name, self.device_group, self.device, _num_nodes(self))

    return __init__


def _reducing(all_reduce: Any) -> Any:
    @functools.wraps(all_reduce)
    def weft_or_own(self: Any, input_: torch.Tensor) -> torch.Tensor:
        reducer: EngineReducer | None = self.weft
        if reducer is not None and reducer.takes(input_):
            return reducer.all_reduce(input_)
        reduced: torch.Tensor = all_reduce(self, input_)
        return reduced

    return weft_or_own


def _num_nodes(communicator: Any) -> int | None:
    """Machines that the group lies on where vLLM was told of several; its ranks are in their order."""
    from vllm.config import get_current_vllm_config_or_none

    parallel = getattr(get_current_vllm_config_or_none(), "parallel_config", None)
    nodes = int(getattr(parallel, "nnodes", 1) or 1)
    if nodes == 1:
        return None
    ranks_of_node = max(1, int(parallel.world_size) // nodes)  # type: ignore[union-attr]
    return max(1, int(communicator.world_size) // ranks_of_node)


def _fuse() -> None:
    if torch.cuda.is_available():
        from weft.plugins.vllm_fusion import install

        install()


def _communicator(module: str, name: str) -> Callable[[], None]:
    return functools.partial(_wrap_communicator, module, name)


PARTS: Final[dict[str, Callable[[], None]]] = {
    "all-reduce on GPUs": _communicator("cuda_communicator", "CudaCommunicator"),
    "all-reduce on CPUs": _communicator("cpu_communicator", "CpuCommunicator"),
    "fused all-reduce + RMSNorm": _fuse,
}
"""What is installed, by the name that a message gives it."""
