"""The fabrics that weft knows by name, each number with its source.

Numbers taken from documents carry half the range of the documents as uncertainty.
Measured tables exist for ``h200-nvlink`` alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from weft.fabric.fabric import Fabric, MeasuredTable, Tier

_KIB: Final = 1024

_H200_METHOD: Final = (
    "4 x H200, NV18, torch 2.11.0+cu130, NCCL 2.28.9, driver 580.159.04, NVLS off; bf16, "
    "inside a captured CUDA graph, median of replays, max over ranks"
)
_LL_METHOD: Final = _H200_METHOD + "; a plain data+flag (16-byte packet) kernel, untuned"

_FIRST_RUN_BYTES: Final = tuple(
    kib * _KIB for kib in (8, 32, 128, 256, 512, 1024, 2048, 4096, 16384)
)
_SECOND_RUN_BYTES: Final = tuple(
    kib * _KIB for kib in (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096)
)


def _table(
    algorithm: str,
    ranks: int,
    sizes: tuple[int, ...],
    times: tuple[float, ...],
    source: str = _H200_METHOD,
    nodes: int = 1,
) -> MeasuredTable:
    return MeasuredTable(
        algorithm=algorithm,
        ranks=ranks,
        nodes=nodes,
        dtype="bfloat16",
        bytes=sizes,
        latency_us=times,
        source=source,
    )


def _kib(*sizes: int) -> tuple[int, ...]:
    return tuple(size * _KIB for size in sizes)


_H200_TABLES: Final = (
    _table(
        "nccl", 4, _SECOND_RUN_BYTES,
        (12.54, 13.24, 14.22, 14.4, 14.32, 14.61, 17.37, 20.88, 29.33, 41.66),
    ),
    _table(
        "nccl", 2, _SECOND_RUN_BYTES,
        (9.13, 9.92, 10.11, 10.44, 10.62, 11.94, 13.36, 17.31, 29.56, 34.94),
    ),
    _table(
        "nccl", 4, _FIRST_RUN_BYTES,
        (98.18, 92.63, 236.69, 254.47, 364.49, 470.18, 757.33, 1224.34, 3717.76),
        _H200_METHOD + "; the GPUs pose as 2 nodes x 2 (NCCL_HOSTID), TCP sockets over loopback",
        nodes=2,
    ),
    _table(
        "nccl_symmetric", 4, _SECOND_RUN_BYTES,
        (7.29, 7.71, 10.3, 13.24, 17.2, 17.41, 19.13, 23.03, 26.55, 38.77),
    ),
    _table(
        "nccl_symmetric", 2, _SECOND_RUN_BYTES,
        (6.82, 7.29, 9.38, 11.45, 14.42, 11.74, 16.7, 19.18, 22.27, 30.76),
    ),
    _table(
        "vllm_custom", 4, _SECOND_RUN_BYTES,
        (4.8, 5.04, 5.21, 5.52, 5.68, 7.24, 10.25, 11.85, 17.54, 29.32),
        _H200_METHOD + "; vLLM 0.25.1, registered buffers",
    ),
    _table(
        "vllm_custom", 2, _SECOND_RUN_BYTES,
        (4.33, 4.51, 4.4, 4.57, 4.68, 4.99, 6.1, 8.22, 12.33, 19.81),
        _H200_METHOD + "; vLLM 0.25.1, registered buffers",
    ),
    _table(
        "torch_one_shot", 4, _FIRST_RUN_BYTES,
        (7.23, 7.53, 9.14, 10.81, 13.25, 19.58, 28.35, 48.49, 166.44),
    ),
    _table(
        "torch_two_shot", 4, _FIRST_RUN_BYTES,
        (6.81, 7.5, 9.52, 9.72, 9.81, 13.23, 18.7, 28.34, 92.41),
    ),
    _table("one_shot", 4, _kib(8, 32, 128), (3.7, 4.3, 6.3), _LL_METHOD),
    _table("one_shot", 2, _kib(8, 32, 128, 256, 512, 1024), (2.8, 3.0, 3.6, 4.4, 6.2, 9.7), _LL_METHOD),
    _table("two_shot", 4, _kib(128, 256, 512, 1024), (5.8, 7.1, 9.0, 13.9), _LL_METHOD),
)  # fmt: skip

_NVLINK4: Final = Tier(
    latency_us=1.1,
    latency_uncertainty_us=0.4,
    latency_source=(
        "H200 NV18: difference of the intercepts of two-shot (4.6 µs) and one-shot (2.8-3.5 µs) "
        "data+flag kernels; one way of an NVSHMEM signal alone is 0.75 µs"
    ),
    bandwidth_gb_s=386.0,
    bandwidth_uncertainty_gb_s=20.0,
    bandwidth_source="H200 NV18: measured device-to-device copy, one way (450 GB/s by data sheet)",
    packet_factor=2.0,
)

_CALL: Final[dict[str, Any]] = {
    "call_us": 2.2,
    "call_uncertainty_us": 0.5,
    "call_source": (
        "H200: intercept of the data+flag one-shot kernel (2.8-3.5 µs) less one step; "
        "an empty kernel in a CUDA graph is 0.81 µs of it"
    ),
}

_RDMA_LATENCY: Final[dict[str, Any]] = {
    "latency_us": 3.9,
    "latency_uncertainty_us": 1.2,
    "latency_source": (
        "NCCL's own cost of a network hop with data+flag packets, src/graph/tuning.cc: "
        "2.7 µs (ring) to 5.0 µs (tree); the middle"
    ),
}

_H200_NVLINK: Final = Fabric(
    name="h200-nvlink",
    gpus_per_node=4,
    intra=_NVLINK4,
    inter=Tier(
        latency_us=44.0,
        latency_uncertainty_us=10.0,
        latency_source=(
            "fit to NCCL over TCP sockets, 2 virtual nodes x 2 on one host: about 95 µs at "
            "8-32 KiB less 7 µs of NVLink and launch, over the 2 network steps of a ring"
        ),
        bandwidth_gb_s=6.9,
        bandwidth_uncertainty_gb_s=0.7,
        bandwidth_source=(
            "the same run, bus bandwidth from the slope of 1.5 x bytes: 6.2 GB/s from 128 KiB to "
            "4 MiB, 7.6 GB/s from 4 to 16 MiB; the middle"
        ),
        packet_factor=2.0,
    ),
    nics_per_node=1,
    **_CALL,
    tables=_H200_TABLES,
)

_H100_NDR400: Final = Fabric(
    name="h100-nvlink-ndr400",
    gpus_per_node=4,
    intra=replace(
        _NVLINK4,
        bandwidth_source=(
            "measured on H200 with the same 18 NVLink 4 links (450 GB/s by the H100 data sheet)"
        ),
    ),
    inter=Tier(
        **_RDMA_LATENCY,
        bandwidth_gb_s=48.5,
        bandwidth_uncertainty_gb_s=1.5,
        bandwidth_source="NDR InfiniBand port, 400 Gb/s = 50 GB/s; 97 % after packet headers (4 KiB MTU)",
        packet_factor=2.0,
    ),
    **_CALL,
)

_HGX_H100: Final = replace(_H100_NDR400, name="hgx-h100", gpus_per_node=8)

_HGX_H200: Final = replace(
    _H200_NVLINK,
    name="hgx-h200",
    gpus_per_node=8,
    inter=_H100_NDR400.inter,
    nics_per_node=None,
    tables=tuple(table for table in _H200_TABLES if table.nodes == 1),
)

_A100_SLINGSHOT: Final = Fabric(
    name="a100-slingshot11",
    gpus_per_node=4,
    intra=replace(
        _NVLINK4,
        latency_us=1.4,
        latency_uncertainty_us=0.6,
        latency_source="H200 value, scaled by the clocks of A100 and H200 (1.41 / 1.98 GHz boost); not measured",
        bandwidth_gb_s=255.0,
        bandwidth_uncertainty_gb_s=30.0,
        bandwidth_source=(
            "A100: 12 NVLink 3 links of 25 GB/s (300 GB/s by data sheet, 4 links between each "
            "pair of 4 GPUs) at the efficiency measured on H200 (386 / 450)"
        ),
    ),
    inter=Tier(
        **_RDMA_LATENCY,
        bandwidth_gb_s=23.5,
        bandwidth_uncertainty_gb_s=1.5,
        bandwidth_source="HPE Slingshot 11 adapter, 200 Gb/s = 25 GB/s, 4 a node; 94 % after Ethernet headers",
        packet_factor=2.0,
    ),
    **_CALL,
)

_HGX_A100: Final = replace(
    _A100_SLINGSHOT,
    name="hgx-a100",
    gpus_per_node=8,
    inter=replace(
        _A100_SLINGSHOT.inter,
        bandwidth_gb_s=24.2,
        bandwidth_source="HDR InfiniBand, 200 Gb/s = 25 GB/s a GPU; 97 % after packet headers",
    ),
)

_GH200_NDR: Final = Fabric(
    name="gh200-ndr",
    gpus_per_node=1,
    intra=replace(
        _NVLINK4, bandwidth_source="one GPU a node: not used; the H200 value stands here"
    ),
    inter=Tier(
        **_RDMA_LATENCY,
        bandwidth_gb_s=48.5,
        bandwidth_uncertainty_gb_s=1.5,
        bandwidth_source="NDR InfiniBand port, 400 Gb/s = 50 GB/s; 97 % after packet headers (4 KiB MTU)",
        packet_factor=2.0,
    ),
    **_CALL,
)


def _node(
    name: str, gpus: int, gb_s: float, source: str, nic_gb_s: float, nic: str, latency_us: float
) -> Fabric:
    """A node by data sheets: links at the share of them that H200's reach (386 of 450)."""
    return replace(
        _H100_NDR400,
        name=name,
        gpus_per_node=gpus,
        intra=replace(
            _NVLINK4,
            latency_us=latency_us,
            latency_uncertainty_us=0.5 * latency_us,
            bandwidth_gb_s=0.858 * gb_s,
            bandwidth_uncertainty_gb_s=0.1 * gb_s,
            bandwidth_source=f"{source}, at the efficiency measured on H200 (386 / 450)",
        ),
        inter=replace(
            _H100_NDR400.inter,
            bandwidth_gb_s=0.97 * nic_gb_s,
            bandwidth_uncertainty_gb_s=0.1 * nic_gb_s,
            bandwidth_source=f"{nic}; 97 % after packet headers",
        ),
    )


_XDR: Final = "XDR InfiniBand, 800 Gb/s = 100 GB/s a GPU"
_NDR: Final = "NDR InfiniBand, 400 Gb/s = 50 GB/s a GPU"

_DATA_SHEET_NODES: Final = (
    _node("hgx-b200", 8, 900, "NVLink 5, 900 GB/s one way by data sheet", 100, _XDR, 1.1),
    _node("nvl72", 72, 900, "NVLink 5 over a rack of 72, 900 GB/s one way", 100, _XDR, 1.1),
    _node("pcie4-x8", 8, 32, "PCIe 4.0 x16, 32 GB/s one way", 50, _NDR, 3.0),
    _node("pcie5-x8", 8, 64, "PCIe 5.0 x16, 64 GB/s one way", 50, _NDR, 3.0),
    _node("mi300x-x8", 8, 448, "Infinity Fabric, 7 links of 64 GB/s one way", 50, _NDR, 2.0),
    _node("mi355x-x8", 8, 538, "Infinity Fabric, 7 links of 77 GB/s one way", 50, _NDR, 2.0),
)


def _ethernet(name: str, bandwidth_gb_s: float, uncertainty: float, source: str) -> Fabric:
    return Fabric(
        name=name,
        gpus_per_node=4,
        nics_per_node=1,
        intra=_NVLINK4,
        inter=Tier(
            latency_us=25.0,
            latency_uncertainty_us=10.0,
            latency_source="kernel TCP, one way between two hosts of one switch: 15-35 µs with interrupts and copies",
            bandwidth_gb_s=bandwidth_gb_s,
            bandwidth_uncertainty_gb_s=uncertainty,
            bandwidth_source=source,
            packet_factor=1.0,
        ),
        **_CALL,
    )


_ETHERNET_100G: Final = _ethernet(
    "ethernet-100g",
    11.3,
    1.1,
    "100 Gb/s = 12.5 GB/s; TCP keeps 99 % with 9000-byte and 94 % with 1500-byte frames, less host cost",
)
_ETHERNET_10G: Final = _ethernet(
    "ethernet-10g",
    1.18,
    0.03,
    "10 Gb/s = 1.25 GB/s; TCP payload of a 1500-byte frame is 1448 of 1538 bytes",
)

BUILTIN_FABRICS: Final = {
    fabric.name: fabric
    for fabric in (
        _H200_NVLINK,
        _HGX_H100,
        _HGX_H200,
        _HGX_A100,
        _H100_NDR400,
        _A100_SLINGSHOT,
        _GH200_NDR,
        _ETHERNET_100G,
        _ETHERNET_10G,
        *_DATA_SHEET_NODES,
    )
}
