"""A device as an engine's kernels use it: the accelerator's numbers times the engine's shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weft.prediction.accelerator import Accelerator
from weft.prediction.engine_profile import EngineProfile
from weft.prediction.kernels import Curve, Kernels, kernels_of
from weft.prediction.layer_work import AttentionWork
from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.weight_formats import WeightFormat


@dataclass(frozen=True, kw_only=True)
class AttentionLine:
    """An attention kernel: a call, rates, and (prefill) the context of half the rate."""

    call_us: float
    us_per_byte: float
    us_per_operation: float
    ramp_tokens: float = 0.0

    def us(self, traffic: float, operations: float) -> float:
        """Decode: ``traffic`` bytes of cache and ``operations``."""
        return self.call_us + traffic * self.us_per_byte + operations * self.us_per_operation

    def prompt_us(self, operations: float, length: float) -> float:
        """Prefill of prompts of ``length`` tokens."""
        slower = 1 + self.ramp_tokens / max(length, 1.0)
        return self.call_us + operations * self.us_per_operation * slower


@dataclass(frozen=True, kw_only=True)
class EngineDevice:
    """Plain numbers for the operators; units and meaning as in :class:`Accelerator`.

    row_call_us: fixed time of a matrix product of one row (``matmul_call_us`` from two rows
    on). layer_kernels: elementwise kernels a layer beside the products and attention.
    kernels: curves that time products, experts and attention where they exist; ``*_share``: what
    the engine takes of them in a whole step; experts_layer_us: routing and gathering a layer.
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
    quantize_kernels: int
    layer_kernels: int
    kernels: Kernels | None
    product_share: float
    experts_share: float
    attention_share: float
    experts_layer_us: float

    def product_curve(self, form: WeightFormat) -> Curve | None:
        """The curve of plain products with weights in ``form``."""
        return self._curve("products", form)

    def experts_curve(self, form: WeightFormat) -> Curve | None:
        """The curve of grouped products; 4-bit weights as the device can use them."""
        return self._curve("experts", form)

    def _curve(self, part: Literal["products", "experts"], form: WeightFormat) -> Curve | None:
        if self.kernels is None:
            return None
        curves = self.kernels.products if part == "products" else self.kernels.experts
        return next((curves[name] for name in form.curves if name in curves), None)

    def attention_line(
        self, work: AttentionWork, phase: Literal["decode", "prefill"], cache_dtype: str
    ) -> AttentionLine:
        """The engine's attention kernel of a phase, over a cache of ``cache_dtype``."""
        lines = getattr(self.kernels, work.kind, {})
        bits = 8 * element_bytes(cache_dtype)
        known = lines.get(f"{phase} {bits}") or lines.get(f"{phase} 16")
        if known and self.kernels is not None:
            call, first, second = (self.attention_share * value for value in known)
            byte, operation = self.kernels.memory_us(1.0), self.kernels.compute_us(1.0)
            if phase == "decode":
                return AttentionLine(
                    call_us=call, us_per_byte=first * byte, us_per_operation=second * operation
                )
            return AttentionLine(
                call_us=call,
                us_per_byte=0.0,
                us_per_operation=max(first, 1e-3) * operation,
                ramp_tokens=1000 * second / max(first, 1e-3),
            )
        return self._own_attention_line(phase)

    def _own_attention_line(self, phase: str) -> AttentionLine:
        if phase == "decode":
            return AttentionLine(
                call_us=self.attention_call_us,
                us_per_byte=1e-3 / self.cache_gb_s,
                us_per_operation=0.0,
            )
        return AttentionLine(
            call_us=self.attention_call_us,
            us_per_byte=0.0,
            us_per_operation=1e-6 / self.attention_tflops,
            ramp_tokens=self.attention_ramp_tokens,
        )

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
        quantize_kernels=profile.quantize_kernels,
        layer_kernels=profile.layer_kernels - fused,
        kernels=kernels_of(accelerator.name, profile.kernel_tables),
        product_share=profile.product_share.value,
        experts_share=profile.experts_share.value,
        attention_share=profile.attention_share.value,
        experts_layer_us=profile.experts_layer_us.value,
    )
