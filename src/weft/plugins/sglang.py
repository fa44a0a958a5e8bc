"""SGLang's tensor-parallel all-reduce through weft's inside its own processes.

Two hooks: the object that a group builds as its custom all-reduce asks weft first, and the fused
all-reduce + RMSNorm, where the server uses it (``--enable-flashinfer-allreduce-fusion``), is
weft's. Read in SGLang 0.5.23; not run on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

import torch

from weft.plugins.reducer import all_reduce_residual_rms_norm, reducer_for

DISPATCH: Final = (
    "sglang.srt.distributed.device_communicators.custom_all_reduce.dispatch_custom_allreduce"
)
FUSED: Final = "sglang.srt.layers.flashinfer_comm_fusion.flashinfer_allreduce_residual_rmsnorm"

_numbers = itertools.count()


def hook() -> None:
    """Register both hooks with SGLang."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(DISPATCH, weft_in_front, HookType.AROUND)
    HookRegistry.register(FUSED, fused, HookType.AROUND)


def weft_in_front(dispatch: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What makes a group's custom all-reduce: SGLang's choice, with weft's in front of it."""
    own = dispatch(*arguments, **options)

    def build(group: Any, device: Any, *more: Any, **also: Any) -> WeftOrOwn:
        return WeftOrOwn(own(group, device, *more, **also), group, torch.device(device))

    return build


class WeftOrOwn:
    """SGLang's custom all-reduce with weft's in front; everything else shines through."""

    def __init__(self, own: Any, group: Any, device: torch.device) -> None:
        self.weft_name = f"sglang-{next(_numbers)}"
        self._own = own
        self._weft = reducer_for(self.weft_name, group, device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    @property
    def disabled(self) -> bool:
        """Whether neither of the two can be used; SGLang sets it around piecewise graphs."""
        return self._weft is None and bool(self._own.disabled)

    @disabled.setter
    def disabled(self, value: bool) -> None:
        self._own.disabled = value

    def weft_takes(self, tensor: torch.Tensor) -> bool:
        """Whether weft reduces this tensor."""
        return self._weft is not None and self._weft.takes(tensor)

    def should_custom_ar(self, inp: torch.Tensor) -> bool:
        """SGLang's question before :meth:`custom_all_reduce`."""
        return self.weft_takes(inp) or bool(self._own.should_custom_ar(inp))

    def custom_all_reduce(self, input: torch.Tensor) -> torch.Tensor | None:  # noqa: A002 - SGLang's name
        """The sum over the group, in a new tensor."""
        if self._weft is not None and self._weft.takes(input):
            return self._weft.all_reduce(input)
        own: torch.Tensor | None = self._own.custom_all_reduce(input)
        return own


def fused(
    own: Callable[..., Any],
    input_tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    *more: Any,
    use_attn_tp_group: bool = True,
    **options: Any,
) -> Any:
    """SGLang's fused all-reduce + residual + RMSNorm: (norm, new residual)."""
    from sglang.srt.layers.flashinfer_comm_fusion import resolve_fusion_group

    _, _, group = resolve_fusion_group(use_attn_tp_group=use_attn_tp_group)
    front = group.ca_comm
    dense = all(tensor.is_contiguous() for tensor in (input_tensor, residual, weight))
    if isinstance(front, WeftOrOwn) and dense and front.weft_takes(input_tensor):
        return all_reduce_residual_rms_norm(input_tensor, residual, weight, eps, front.weft_name)
    options["use_attn_tp_group"] = use_attn_tp_group
    return own(input_tensor, residual, weight, eps, *more, **options)
