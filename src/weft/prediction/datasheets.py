"""Devices that nobody measured for weft: data sheets, at the shares that H200 reaches of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from weft.prediction.accelerator import Accelerator
from weft.prediction.quantity import Quantity

_SHEET_SPREAD: Final = 0.12
_SHARE_SPREAD: Final = 0.25

# What an H200 reaches of its data sheet (h200-sxm.json): memory 4.8 TB/s, 989 and 1979 TFLOP/s.
_STREAM, _CACHE, _COPY = 0.917, 0.875, 0.81
_PRODUCTS, _PRODUCTS8, _ATTENTION = 0.714, 0.657, 0.65
_KERNELS: Final = ("matmul_call_us", "attention_call_us", "elementwise_call_us")
_FIXED: Final = {
    "attention_ramp_tokens": 1100.0,
    "matmul_call_us": 4.3,
    "attention_call_us": 9.7,
    "elementwise_call_us": 2.55,
    "launch_us": 10.0,
    "host_step_us": 400.0,
}


@dataclass(frozen=True, kw_only=True)
class DataSheet:
    """Memory in GB and GB/s, dense TFLOP/s in 16 and 8 bits (0: none), and the document.

    slower: calls of kernels over H200's, by the boost clocks.
    """

    memory_gb: float
    bandwidth_gb_s: float
    tflops: float
    tflops8: float
    source: str
    slower: float = 1.0

    def accelerator(self, name: str) -> Accelerator:
        """The device at H200's shares, with intervals that say that it was not measured."""

        def sheet(value: float) -> Quantity:
            return Quantity(
                value=value, spread=_SHEET_SPREAD, origin="data sheet", source=self.source
            )

        fixed = {
            field: Quantity(
                value=value * (self.slower if field in _KERNELS else 1.0),
                spread=_SHARE_SPREAD,
                origin="extrapolated",
                source="as on H200, by the clocks",
            )
            for field, value in _FIXED.items()
        }
        return Accelerator(
            name=name,
            memory_gb=sheet(self.memory_gb),
            matmul_tflops=sheet(self.tflops * _PRODUCTS),
            matmul8_tflops=sheet(self.tflops8 * _PRODUCTS8),
            stream_gb_s=sheet(self.bandwidth_gb_s * _STREAM),
            cache_gb_s=sheet(self.bandwidth_gb_s * _CACHE),
            copy_gb_s=sheet(self.bandwidth_gb_s * _COPY),
            attention_tflops=sheet(self.tflops * _ATTENTION),
            **fixed,
        )


_BLACKWELL: Final = "NVIDIA Blackwell data sheet (widen.net/s/wwnsxrhm2w), dense rates"
_SEEN: Final = "; memory as the driver shows it"

_HOPPER: Final = "NVIDIA H100 and GH200 data sheets, dense rates"

DATA_SHEETS: Final = {
    "h100-sxm": DataSheet(
        memory_gb=84.9, bandwidth_gb_s=3350, tflops=989, tflops8=1979, source=_HOPPER + _SEEN
    ),
    "gh200": DataSheet(
        memory_gb=101.5, bandwidth_gb_s=4000, tflops=989, tflops8=1979, source=_HOPPER + _SEEN
    ),
    "a100-80g": DataSheet(
        memory_gb=85.0,
        bandwidth_gb_s=2039,
        tflops=312,
        tflops8=0,
        source="NVIDIA A100 data sheet" + _SEEN,
        slower=1.4,
    ),
    "b200-sxm": DataSheet(
        memory_gb=191, bandwidth_gb_s=7700, tflops=2250, tflops8=4500, source=_BLACKWELL + _SEEN
    ),
    "b300-sxm": DataSheet(
        memory_gb=287, bandwidth_gb_s=7700, tflops=2250, tflops8=4500, source=_BLACKWELL + _SEEN
    ),
    "gb200": DataSheet(
        memory_gb=198, bandwidth_gb_s=8000, tflops=2500, tflops8=5000, source=_BLACKWELL + _SEEN
    ),
    "gb300": DataSheet(
        memory_gb=296, bandwidth_gb_s=8000, tflops=2500, tflops8=5000, source=_BLACKWELL + _SEEN
    ),
    "h20": DataSheet(
        memory_gb=102, bandwidth_gb_s=4000, tflops=148, tflops8=296, source="NVIDIA H20 brief"
    ),
    "l40s": DataSheet(
        memory_gb=48.3, bandwidth_gb_s=864, tflops=362, tflops8=733, source="NVIDIA L40S data sheet"
    ),
    "rtx-5090": DataSheet(
        memory_gb=33.7,
        bandwidth_gb_s=1792,
        tflops=209.5,
        tflops8=419,
        source="NVIDIA RTX Blackwell architecture paper, dense with fp32 sums",
    ),
    "mi300x": DataSheet(
        memory_gb=206,
        bandwidth_gb_s=5300,
        tflops=1307,
        tflops8=2615,
        source="AMD MI300X data sheet",
    ),
    "mi355x": DataSheet(
        memory_gb=309,
        bandwidth_gb_s=8000,
        tflops=2516,
        tflops8=5033,
        source="AMD MI355X data sheet",
    ),
}
