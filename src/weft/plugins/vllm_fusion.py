"""A pass over vLLM's compiled graph: all-reduce, then residual and RMSNorm, as one call of weft's.

It runs before vLLM's own fusion of the same pattern (FlashInfer's), and behind all of vLLM's
fusions where the model is quantised: a norm with an 8-bit output stays vLLM's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import fx

from weft.plugins.reducer import all_reduce_residual_rms_norm, reducer_of

OWN_FUSION: Final = "AllReduceFusionPass"
NORM: Final = ("x", "x_residual", "weight", "epsilon", "variance_size")
ALL_REDUCE: Final = ("tensor", "group_name")
"""Names of the arguments of vLLM's operators."""


def install() -> None:
    """Let every pass manager of this process run the pass, and name it in vLLM's cache key."""
    from vllm.compilation.passes.pass_manager import PostGradPassManager
    from vllm.config import VllmConfig

    if not hasattr(PostGradPassManager, "_weft_wrapped"):
        PostGradPassManager._weft_wrapped = True  # noqa: SLF001 - a mark of ours
        PostGradPassManager.configure = _configuring(PostGradPassManager.configure)
        VllmConfig.compute_hash = _naming(VllmConfig.compute_hash)


def _configuring(configure: Any) -> Any:
    from vllm.compilation.passes.inductor_pass import InductorPass

    class AllReduceResidualNorm(InductorPass):  # type: ignore[misc]
        def __call__(self, graph: fx.Graph) -> None:
            fuse(graph)

    @functools.wraps(configure)
    def configure_with_weft(self: Any, config: Any) -> None:
        configure(self, config)
        names = [type(one).__name__ for one in self.passes]
        quantised = getattr(config.model_config, "quantization", None) is not None
        place = names.index(OWN_FUSION) if OWN_FUSION in names and not quantised else len(names)
        self.passes.insert(place, AllReduceResidualNorm())

    return configure_with_weft


def _naming(compute_hash: Any) -> Any:
    @functools.wraps(compute_hash)
    def compute_hash_with_weft(self: Any) -> str:
        return f"{compute_hash(self)}w"

    return compute_hash_with_weft


def fuse(graph: fx.Graph) -> int:
    """Replace every all-reduce whose one reader is a fused residual + RMSNorm; how many."""
    norm_op = torch.ops.vllm_ir.fused_add_rms_norm.default
    found = [node for node in graph.nodes if node.target is norm_op and _fits(node)]
    for norm in found:
        reduced, residual, weight, epsilon, _ = _arguments(norm, NORM)
        partial, group = _arguments(reduced, ALL_REDUCE)
        with graph.inserting_before(norm):
            arguments = (partial, residual, weight, epsilon, group)
            fused = graph.call_function(all_reduce_residual_rms_norm._opoverload, arguments)  # noqa: SLF001
        fused.meta["val"] = norm.meta["val"]
        norm.replace_all_uses_with(fused)
        graph.erase_node(norm)
        graph.erase_node(reduced)
    return len(found)


def _fits(norm: fx.Node) -> bool:
    """(all-reduce read by nothing else, residual, weight of the same type, epsilon) of weft's."""
    reduced, residual, weight, _, variance_size = _arguments(norm, NORM)
    if not isinstance(reduced, fx.Node) or variance_size is not None:
        return False
    if reduced.target is not torch.ops.vllm.all_reduce.default or len(reduced.users) > 1:
        return False
    nodes = [one for one in (reduced, residual, weight) if isinstance(one, fx.Node)]
    dtypes = {getattr(node.meta.get("val"), "dtype", None) for node in nodes}
    _, group = _arguments(reduced, ALL_REDUCE)
    return len(nodes) == 3 and len(dtypes) == 1 and reducer_of(str(group)) is not None


def _arguments(node: fx.Node, names: Sequence[str]) -> list[Any]:
    """The arguments of a call by name, however they were passed; None for those left out."""
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return [given.get(name) for name in names]
