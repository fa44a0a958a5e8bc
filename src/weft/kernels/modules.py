"""The compiled sources of a communicator: which file, which constants, loaded once a process."""

from __future__ import annotations

from functools import cache

import torch

from weft.kernels import nvrtc, selection
from weft.kernels.driver import Module

ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
NVSHMEM_SOURCE = "hierarchical_nvshmem.cu"


def source_of(algorithm: str) -> str:
    """The file that holds an all-reduce kernel."""
    if algorithm in selection.FLAT:
        return "all_reduce.cu"
    return NVSHMEM_SOURCE if algorithm == selection.NVSHMEM else "hierarchical.cu"


def module_for(
    source: str, num_ranks: int, nodes: int, dtype: torch.dtype, device_index: int
) -> Module:
    """The loaded source for a group and element type; the device must be current."""
    uses_nodes = source.startswith("hierarchical")
    return _load(source, num_ranks, nodes if uses_nodes else 0, dtype, device_index)


@cache
def _load(source: str, num_ranks: int, nodes: int, dtype: torch.dtype, device_index: int) -> Module:
    from weft.kernels.nvshmem import DeviceLibrary

    major, minor = torch.cuda.get_device_capability(device_index)
    defines = {"WEFT_WORLD": num_ranks, "WEFT_ELEMENT": ELEMENTS[dtype]}
    if nodes:
        defines["WEFT_NODES"] = nodes
    library = DeviceLibrary() if source == NVSHMEM_SOURCE else None
    return Module(nvrtc.compile_source(source, defines, f"sm_{major}{minor}", library))
