"""A device as an engine's kernels use it: the accelerator's numbers times the engine's shares."""

from __future__ import annotations

from dataclasses import dataclass

from weft.prediction.accelerator import Accelerator
from weft.prediction.engine_profile import EngineProfile


@dataclass(frozen=True, kw_only=True)
class EngineDevice:
    """Plain numbers for the operators; units and meaning as in :class:`Accelerator`.

    row_call_us: fixed time of a matrix product of one row (``matmul_call_us`` from two rows
    on). layer_kernels: elementwise kernels a layer beside the products and attention.
    """

    matmul_tflops: float
    matmul8_tflops: float
    stream_gb_s: float
    cache_gb_s: float
    copy_gb_s: float
    attention_tflops: float
    attention_ramp_tokens: float
    matmul_call_us: float
    row_call_us: float
    attention_call_us: float
    elementwise_call_us: float
    layer_kernels: int

    def call_us(self, rows: float) -> float:
        """Fixed time of a matrix product; between one row and two it grows evenly."""
        more = min(max(rows - 1.0, 0.0), 1.0)
        return self.row_call_us + more * (self.matmul_call_us - self.row_call_us)


def engine_device(
    accelerator: Accelerator, profile: EngineProfile, *, all_reduces: bool
) -> EngineDevice:
    """The device as the engine's kernels use it.

    Where the layers have all-reduces, the kernels that the engine does inside them fall away.
    """
    rate, call = profile.matmul_rate_share.value, profile.kernel_call_share.value
    matmul_call = accelerator.matmul_call_us.value
    fused = profile.fused_kernels if all_reduces else 0
    return EngineDevice(
        matmul_tflops=accelerator.matmul_tflops.value * rate,
        matmul8_tflops=accelerator.matmul8_tflops.value * rate,
        stream_gb_s=accelerator.stream_gb_s.value,
        cache_gb_s=accelerator.cache_gb_s.value * profile.cache_rate_share.value,
        copy_gb_s=accelerator.copy_gb_s.value,
        attention_tflops=accelerator.attention_tflops.value,
        attention_ramp_tokens=accelerator.attention_ramp_tokens.value,
        matmul_call_us=matmul_call,
        row_call_us=matmul_call * min(profile.row_call_share.value, 1.0),
        attention_call_us=accelerator.attention_call_us.value * call,
        elementwise_call_us=accelerator.elementwise_call_us.value * call,
        layer_kernels=profile.layer_kernels - fused,
    )
