"""Which events of a trace are collectives, and which operation each of them is.

One call leaves up to four layers in a trace: the engine's operator
(``vllm::all_reduce``), torch's (``c10d::allreduce_``), the record of its parameters
(``record_param_comms``) or the backend's annotation (``gloo:all_reduce``), and the
kernel. The names here say which layer an event is; calls.py joins the layers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from weft.vocabulary.schedule import OPERATIONS


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
    LAUNCH = auto()
    BACKEND = auto()
    MATRIX = auto()
    OTHER = auto()


# Spellings of operations by c10d, NCCL, gloo and the engines, reduced to letters.
_SPELLED: Final = re.compile(
    r"(?:reg|inplace|outplace)?"
    r"(allreduce|allgather|reducescatter|alltoall|broadcast|send|recv|gather|reduce|scatter|barrier)"
    r"(?:base|tensorlist|intotensor|tensor|coalesced|single|sparse|anysource|oop|v)*"
)
_NAMES: Final = {name.replace("_", ""): name for name in (*OPERATIONS, "barrier")}


@dataclass(frozen=True, slots=True)
class Moved:
    """What a kernel or an operator moves: ``operation`` is UNKNOWN where its name does not tell.

    ``variant`` names a library's own form of the operation, ``fused`` what it is fused with.
    """

    operation: str
    variant: str | None = None
    fused: str | None = None


UNKNOWN: Final = "unknown"
SIGNALS: Final = "signals"
"""Barriers, flags and counts that libraries send around their transfers: no data of the model."""

_BY_NAME: Final = "by name"
_FORMS: Final = (
    # library, pattern of the kernel's name, what it moves; the first match counts
    ("inductor", r"^triton_", None),
    ("deepep", r"(?:deep_ep|nixl_ep|mooncake)\w*::.*(?:notify_|clean_|barrier)", Moved(SIGNALS)),
    ("deepep", r"(?:deep_ep|hybrid_ep|nixl_ep|mooncake)\w*::.*layout", None),
    ("deepep", r"(?:deep_ep|hybrid_ep)\w*::.*dispatch", Moved("all_to_all", "deepep_dispatch")),
    ("deepep", r"(?:deep_ep|hybrid_ep)\w*::.*combine", Moved("all_to_all", "deepep_combine")),
    ("nixl", r"(?:nixl_ep|mooncake)\w*::.*dispatch", Moved("all_to_all", "nixl_dispatch")),
    ("nixl", r"(?:nixl_ep|mooncake)\w*::.*combine", Moved("all_to_all", "nixl_combine")),
    ("pplx", r"(?:pplx|a2a_kernels).*dispatch|a2a_dispatch", Moved("all_to_all", "pplx_dispatch")),
    ("pplx", r"(?:pplx|a2a_kernels).*combine|a2a_combine", Moved("all_to_all", "pplx_combine")),
    ("trtllm", r"moe(?:A2A)?Dispatch", Moved("all_to_all", "trtllm_dispatch")),
    ("trtllm", r"moe(?:A2A)?Combine", Moved("all_to_all", "trtllm_combine")),
    ("trtllm", r"moeAll_?To_?All", Moved("all_to_all", "trtllm_alltoall")),
    ("flashinfer, trtllm", r"all_?reduce_fusion|lamport\w*all_?reduce\w*norm|allreduce\w*rms",
     Moved("all_reduce", fused="residual_rms_norm")),
    ("weft", r"^all_reduce_residual_rms_norm$", Moved("all_reduce", fused="residual_rms_norm")),
    ("weft", r"^(?:dispatch|combine)_rows(?:\(.*)?$", Moved("all_to_all")),
    ("weft", r"^(?:one_shot|two_shot|hierarchical_\w+)(?:\(.*)?$", Moved("all_reduce")),
    ("symmetric memory", r"symmetric_memory.*(?:barrier|signal)|^nvshmem\w*barrier|barrier_on_stream",
     Moved(SIGNALS)),
    ("symmetric memory", r"all_?to_?all_?v", Moved("all_to_all")),
    ("nccl", r"nccl\w*kernel\w*_(?:AllReduce|AllGather|ReduceScatter|Broadcast|Reduce)", _BY_NAME),
    ("nccl, rccl", r"[nr]ccl\w*kernel", Moved(UNKNOWN)),
    ("vllm, sglang, aiter", r"cross_device_reduce|custom_all_reduce|_Z\w*quick_?reduce|quickreduce::",
     Moved("all_reduce")),
    ("aiter", r"reduce_scatter_cross_device", Moved("reduce_scatter")),
    ("trtllm, torch", r"(?:one|two)_?shot_?all_?reduce|all_reduce_(?:one|two)_shot|reduce_(?:one|two)_shot",
     Moved("all_reduce")),
    ("trtllm", r"userbuffers_fp16_sum_inplace", Moved("all_reduce")),
    ("mscclpp", r"mscclpp.*(?:allreduce|allgather|reducescatter|alltoall)", _BY_NAME),
    ("any", r"all_?reduce|all_?gather|reduce_?scatter|all_?to_?all", _BY_NAME),
    ("nvshmem, mscclpp", r"nvshmem|mscclpp", Moved(UNKNOWN)),
)  # fmt: skip
_KERNELS: Final = tuple((re.compile(form[1], re.IGNORECASE), form[2]) for form in _FORMS)
_NAMED: Final = re.compile(
    r"(all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|broadcast|reduce)", re.IGNORECASE
)

_WRAPPER: Final = re.compile(
    r"(?:vllm|c10d|_c10d_functional|sglang|sgl_kernel|trtllm|symm_mem|_C_custom_ar|aiter|mscclpp"
    r"|flashinfer|weft)::(\w+)"
)
_FUSED: Final = (
    (re.compile(r"all_?reduce.*(?:rms_?norm|fusion)"), Moved("all_reduce", None, "residual_rms_norm")),
    (re.compile(r"matmul_reduce_scatter"), Moved("reduce_scatter", None, "matmul")),
    (re.compile(r"all_gather_(?:scaled_)?matmul"), Moved("all_gather", None, "matmul")),
    (re.compile(r"matmul_all_?reduce"), Moved("all_reduce", None, "matmul")),
    (re.compile(r"all_?to_?all_?v"), Moved("all_to_all")),
    (re.compile(r"all_?reduce"), Moved("all_reduce")),
    (re.compile(r"all_?gather"), Moved("all_gather")),
    (re.compile(r"reduce_?scatter"), Moved("reduce_scatter")),
)  # fmt: skip
_NO_CALL: Final = re.compile(r"init|register|dispose|meta_size|buffer|open_|should|can_")
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
_LAUNCH: Final = re.compile(r"^(?:cuda|cu|hip)\w*Launch\w*Kernel")
_BACKEND: Final = re.compile(r"(gloo|nccl|rccl|hccl|ucc|mpi|xccl):(\w+)")


def operation_of(text: str) -> str | None:
    """The operation that a name means, or None: ``_allgather_base`` is ``all_gather``."""
    match = _SPELLED.fullmatch(re.sub(r"[^a-z]", "", text.lower()))
    return _NAMES[match[1]] if match else None


def classify(category: str, name: str) -> tuple[Kind, Moved | None]:
    """The layer of an event and, for a collective, what it moves."""
    if category in ("kernel", "Kernel"):
        traffic = _kernel_traffic(name)
        return (Kind.KERNEL, traffic) if traffic else (Kind.COMPUTE, None)
    if category in ("cpu_op", "Operator"):
        return _host_operator(name)
    if category == "user_annotation":
        return _annotation(name)
    return _other_kind(category, name), None


def _other_kind(category: str, name: str) -> Kind:
    if category == "gpu_user_annotation" and _is_label(name):
        return Kind.STEP_ON_DEVICE
    if category not in ("cuda_runtime", "cuda_driver"):
        return Kind.OTHER
    if name in _GRAPH_LAUNCHES:
        return Kind.GRAPH_LAUNCH
    return Kind.LAUNCH if _LAUNCH.search(name) else Kind.OTHER


def _kernel_traffic(name: str) -> Moved | None:
    for pattern, traffic in _KERNELS:
        if pattern.search(name):
            return _by_name(name) if isinstance(traffic, str) else traffic
    return None


def _by_name(name: str) -> Moved:
    match = _NAMED.search(name)
    return Moved((match and operation_of(match[0])) or UNKNOWN)


def _host_operator(name: str) -> tuple[Kind, Moved | None]:
    if name == "record_param_comms":
        return Kind.RECORD, None
    if name.startswith("_C::shm_"):
        operation = operation_of(name.removeprefix("_C::shm_"))
        return (Kind.SHARED_MEMORY, Moved(operation)) if operation else (Kind.OTHER, None)
    if name in _MATRIX_OPERATORS:
        return Kind.MATRIX, None
    match = _WRAPPER.match(name)
    traffic = _wrapped_traffic(match[1]) if match else None
    return (Kind.WRAPPER, traffic) if traffic else (Kind.OTHER, None)


def _wrapped_traffic(name: str) -> Moved | None:
    """``flashinfer_allreduce_residual_rmsnorm`` and ``allreduce_fusion`` are all-reduces too."""
    operation = operation_of(name)
    if operation is not None:
        return Moved(operation)
    found = next((traffic for pattern, traffic in _FUSED if pattern.search(name)), None)
    return None if found is None or _NO_CALL.search(name) else found


def _annotation(name: str) -> tuple[Kind, Moved | None]:
    match = _BACKEND.match(name)
    if match:
        kind = Kind.GLOO if match[1] == "gloo" else Kind.BACKEND
        return kind, Moved(operation_of(match[2]) or name)
    return (Kind.STEP, None) if _is_label(name) else (Kind.OTHER, None)


def _is_label(name: str) -> bool:
    return name.startswith(("execute_", "weft_context_", "step[", "[Executor]"))
