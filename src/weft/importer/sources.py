"""Which events of a trace are collectives, and which operation each of them is.

One call leaves up to four layers in a trace: the engine's operator
(``vllm::all_reduce``), torch's (``c10d::allreduce_``), the record of its parameters
(``record_param_comms``) or the backend's annotation (``gloo:all_reduce``), and the
kernel. The names here say which layer an event is; calls.py joins the layers.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final


class Kind(Enum):
    """What an event is to the importer."""

    RECORD = auto()
    KERNEL = auto()
    COMPUTE = auto()
    SHARED_MEMORY = auto()
    GLOO = auto()
    WRAPPER = auto()
    STEP = auto()
    STEP_ON_DEVICE = auto()
    GRAPH_LAUNCH = auto()
    MATRIX = auto()
    OTHER = auto()


# Spellings of operations by c10d, NCCL, gloo and the engines, reduced to letters.
_OPERATIONS: Final = {
    "allreduce": "all_reduce",
    "allreducecoalesced": "all_reduce",
    "inplaceallreduce": "all_reduce",
    "outplaceallreduce": "all_reduce",
    "allgather": "all_gather",
    "allgatherv": "all_gather",
    "allgatherbase": "all_gather",
    "allgatherintotensor": "all_gather",
    "allgatherintotensorcoalesced": "all_gather",
    "allgathercoalesced": "all_gather",
    "regallgatherintotensor": "all_gather",
    "reducescatter": "reduce_scatter",
    "reducescatterv": "reduce_scatter",
    "reducescatterbase": "reduce_scatter",
    "reducescattertensor": "reduce_scatter",
    "reducescattertensorcoalesced": "reduce_scatter",
    "regreducescattertensor": "reduce_scatter",
    "gather": "gather",
    "broadcast": "broadcast",
    "broadcastoop": "broadcast",
    "send": "send",
    "sendtensorlist": "send",
    "recv": "recv",
    "recvanysource": "recv",
    "recvtensorlist": "recv",
    "alltoall": "all_to_all",
    "alltoallv": "all_to_all",
    "alltoallbase": "all_to_all",
    "alltoallsingle": "all_to_all",
    "reduce": "reduce",
    "scatter": "scatter",
    "barrier": "barrier",
}

_KERNELS: Final = (
    (re.compile(r"nccl\w*[Kk]ernel_(?:AllReduce)"), "all_reduce"),
    (re.compile(r"nccl\w*[Kk]ernel_(?:AllGather)"), "all_gather"),
    (re.compile(r"nccl\w*[Kk]ernel_(?:ReduceScatter)"), "reduce_scatter"),
    (re.compile(r"nccl\w*[Kk]ernel_(?:Broadcast)"), "broadcast"),
    (re.compile(r"nccl\w*[Kk]ernel_(?:Reduce)"), "reduce"),
    (re.compile(r"nccl\w*[Kk]ernel_(?:SendRecv)"), "send_recv"),
    (re.compile(r"nccl\w*(?:Kernel|kernel)\w*"), "nccl"),
    (
        re.compile(
            r"cross_device_reduce|oneShotAllReduce|twoShotAllReduce|allreduce_fusion_kernel"
            r"|one_shot_all_?reduce|two_shot_all_?reduce|multimem_all_?reduce"
            r"|allreduce_prototype|lamport\w*allreduce|userbuffers_fp16_sum_inplace"
            r"|all_reduce_(?:one|two)_shot|reduce_(?:one|two)_shot|custom_all_reduce",
            re.IGNORECASE,
        ),
        "all_reduce",
    ),
    (re.compile(r"multimem_all_?gather|userbuffers\w*allgather", re.IGNORECASE), "all_gather"),
    (
        re.compile(r"multimem_reduce_?scatter|userbuffers\w*reducescatter", re.IGNORECASE),
        "reduce_scatter",
    ),
)

_WRAPPER: Final = re.compile(
    r"(?:vllm|c10d|_c10d_functional|sglang|sgl_kernel|trtllm|symm_mem|_C_custom_ar|aiter)::(\w+)"
)
_MATRIX_OPERATORS: Final = frozenset(
    {
        "aten::linear",
        "aten::mm",
        "aten::addmm",
        "aten::matmul",
        "aten::embedding",
        "_C::onednn_mm",
        "vllm::unified_attention_with_output",
    }
)
_GRAPH_LAUNCHES: Final = frozenset({"cudaGraphLaunch", "cuGraphLaunch", "hipGraphLaunch"})


def operation_of(text: str) -> str | None:
    """The operation that a name means, or None: ``_allgather_base`` is ``all_gather``."""
    letters = re.sub(r"[^a-z]", "", text.lower())
    return _OPERATIONS.get(letters)


def classify(category: str, name: str) -> tuple[Kind, str | None]:
    """The layer of an event and, for a collective, its operation."""
    if category == "kernel":
        operation = _kernel_operation(name)
        return (Kind.KERNEL, operation) if operation else (Kind.COMPUTE, None)
    if category == "cpu_op":
        return _host_operator(name)
    if category == "user_annotation":
        return _annotation(name)
    if category == "gpu_user_annotation" and _is_label(name):
        return Kind.STEP_ON_DEVICE, None
    if category in ("cuda_runtime", "cuda_driver") and name in _GRAPH_LAUNCHES:
        return Kind.GRAPH_LAUNCH, None
    return Kind.OTHER, None


def _kernel_operation(name: str) -> str | None:
    return next((operation for pattern, operation in _KERNELS if pattern.search(name)), None)


def _host_operator(name: str) -> tuple[Kind, str | None]:
    if name == "record_param_comms":
        return Kind.RECORD, None
    if name.startswith("_C::shm_"):
        operation = operation_of(name.removeprefix("_C::shm_"))
        return (Kind.SHARED_MEMORY, operation) if operation else (Kind.OTHER, None)
    if name in _MATRIX_OPERATORS:
        return Kind.MATRIX, None
    match = _WRAPPER.match(name)
    operation = _wrapped_operation(match[1]) if match else None
    return (Kind.WRAPPER, operation) if operation else (Kind.OTHER, None)


def _wrapped_operation(name: str) -> str | None:
    """``flashinfer_allreduce_residual_rmsnorm`` and ``allreduce_fusion`` are all-reduces too."""
    operation = operation_of(name)
    if operation is None and re.search(r"all_?reduce", name):
        return None if "init" in name or "register" in name else "all_reduce"
    return operation


def _annotation(name: str) -> tuple[Kind, str | None]:
    if name.startswith("gloo:"):
        return Kind.GLOO, operation_of(name.removeprefix("gloo:")) or name
    return (Kind.STEP, None) if _is_label(name) else (Kind.OTHER, None)


def _is_label(name: str) -> bool:
    return name.startswith(("execute_", "step[", "[Executor]"))
