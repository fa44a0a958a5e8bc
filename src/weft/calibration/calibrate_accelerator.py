"""Measure this machine's accelerator (or CPU) and write what the time model needs of it.

The measurements come from a :class:`Timer`; the rest is least squares on its times, so the
fit is tested against a timer with known answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from weft.prediction.accelerator import Accelerator
from weft.prediction.quantity import Quantity

Progress = Callable[[str], None]


class Timer(Protocol):
    """Times of single operations on one device, in µs (device time unless said otherwise)."""

    @property
    def name(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def element_bytes(self) -> int: ...
    @property
    def memory_gb(self) -> float: ...
    def matmul_us(self, rows: int, n: int, k: int) -> float: ...
    def matmul8_us(self, rows: int, n: int, k: int) -> float | None: ...
    def copy_us(self, num_bytes: int) -> float: ...
    def decode_attention_us(self, sequences: int, context: int) -> float: ...
    def prefill_attention_us(self, tokens: int) -> float: ...
    def elementwise_us(self) -> float: ...
    def launch_us(self) -> float: ...
    def host_step_us(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What to measure: enough bytes to leave the caches, little enough to take minutes.

    streams: (n, k) of one-row products; matmul: (rows, n, k) of the large one;
    attention_heads x attention_head_dim: query (and KV) heads of the attention calls.
    """

    streams: tuple[tuple[int, int], ...]
    matmul: tuple[int, int, int]
    copy_bytes: int
    decode: tuple[tuple[int, int], ...]
    prefill_tokens: tuple[int, ...]
    attention_heads: int
    attention_head_dim: int


# Of a prefill's time, what is never taken for its fixed part (a busy machine would).
_LEAST_SHARE: Final = 0.3

GPU_SIZES: Final = Sizes(
    streams=((4096, 4096), (6144, 4096), (4096, 14336), (28672, 4096), (28672, 8192)),
    matmul=(8192, 14336, 4096),
    copy_bytes=1 << 30,
    decode=((1, 128), (8, 1024), (32, 1024), (32, 4096)),
    prefill_tokens=(512, 1024, 2048, 4096),
    attention_heads=32,
    attention_head_dim=128,
)

CPU_SIZES: Final = Sizes(
    streams=((512, 512), (1024, 1024), (2048, 2048), (4096, 2048)),
    matmul=(256, 1024, 1024),
    copy_bytes=1 << 26,
    decode=((1, 128), (4, 512), (8, 1024)),
    prefill_tokens=(128, 256, 512),
    attention_heads=8,
    attention_head_dim=64,
)


def calibrate_accelerator(
    device: str | None = None, progress: Progress = lambda _: None
) -> Accelerator:
    """Measure ``device`` (``cuda``, ``cuda:1`` or ``cpu``; None = the GPU if there is one).

    Takes seconds on a GPU and under a minute on a CPU. ``progress`` is called with the
    name of each part. Raises EnvironmentUnavailable where the device is not there.
    """
    from weft.calibration.device_timer import DeviceTimer

    sizes = GPU_SIZES
    timer = DeviceTimer(device)
    if timer.is_cpu:
        sizes = CPU_SIZES
    timer.set_heads(sizes.attention_heads, sizes.attention_head_dim)
    return fit_accelerator(timer, sizes, progress)


def fit_accelerator(timer: Timer, sizes: Sizes, progress: Progress = lambda _: None) -> Accelerator:
    """The accelerator that explains the timer's times (see :class:`Accelerator` for the terms)."""

    def measured(value: float, what: str, spread: float = 0.05) -> Quantity:
        return Quantity(
            value=value, spread=spread, origin="measured", source=f"{timer.method}: {what}"
        )

    progress("matrix products")
    stream, call = _streams(timer, sizes)
    rows, n, k = sizes.matmul
    operations = 2 * rows * n * k
    rate = operations * 1e-6 / max(timer.matmul_us(rows, n, k) - call, 1e-3)
    time8 = timer.matmul8_us(rows, n, k)
    rate8 = 0.0 if time8 is None else operations * 1e-6 / max(time8 - call, 1e-3)
    progress("memory")
    copy = 2 * sizes.copy_bytes * 1e-3 / timer.copy_us(sizes.copy_bytes)
    progress("attention")
    cache, attention_call = _decode(timer, sizes)
    attention_rate, ramp = _prefill(timer, sizes, attention_call)
    progress("launches")
    return Accelerator(
        name=timer.name,
        memory_gb=measured(timer.memory_gb, "total memory", 0.01),
        matmul_tflops=measured(rate, f"[{rows}, {k}] x [{k}, {n}]"),
        matmul8_tflops=measured(rate8, "8-bit product of the same shape" if rate8 else "none"),
        stream_gb_s=measured(stream, "slope of one-row products"),
        cache_gb_s=measured(cache, "slope of decode attention", 0.1),
        copy_gb_s=measured(copy, f"copy of {sizes.copy_bytes >> 20} MiB, read plus written"),
        attention_tflops=measured(attention_rate, "prefill attention, long context", 0.1),
        attention_ramp_tokens=measured(ramp, "prefill attention, slope", 0.3),
        matmul_call_us=measured(call, "intercept of one-row products", 0.2),
        attention_call_us=measured(attention_call, "intercept of decode attention", 0.2),
        elementwise_call_us=measured(timer.elementwise_us(), "small elementwise kernel", 0.2),
        launch_us=measured(timer.launch_us(), "host time of one operator", 0.2),
        host_step_us=measured(timer.host_step_us(), "inputs in, sampled ids out", 0.3),
    )


def doubts(found: Accelerator) -> str | None:
    """Why a measurement should be repeated, where its numbers contradict each other."""
    attention, products = found.attention_tflops.value, found.matmul_tflops.value
    if attention > 2 * products:
        return f"attention at {attention:.3g} TFLOP/s is above matrix products at {products:.3g}"
    if found.launch_us.value > found.host_step_us.value:
        return f"a launch of {found.launch_us.value:.3g} µs is longer than a step's host time"
    return None


def _streams(timer: Timer, sizes: Sizes) -> tuple[float, float]:
    """(GB/s, call µs) from products with one row."""
    b = timer.element_bytes
    traffic = [(n * k + n + k) * b for n, k in sizes.streams]
    return _line(traffic, [timer.matmul_us(1, n, k) for n, k in sizes.streams])


def _decode(timer: Timer, sizes: Sizes) -> tuple[float, float]:
    """(GB/s, call µs) from decode attention over caches of several sizes."""
    width = 2 * sizes.attention_heads * sizes.attention_head_dim * timer.element_bytes
    traffic = [sequences * context * width for sequences, context in sizes.decode]
    return _line(traffic, [timer.decode_attention_us(*shape) for shape in sizes.decode])


def _line(traffic: Sequence[float], times_us: Sequence[float]) -> tuple[float, float]:
    """Rate in GB/s and fixed time in µs of ``time = fixed + bytes / rate``.

    Weighted for equal relative errors; the fixed time is kept above zero.
    """
    times = np.asarray(times_us)
    matrix = np.stack([np.ones(len(times)), np.asarray(traffic) * 1e-3], axis=1)
    weights = 1 / times
    fixed, slope = np.linalg.lstsq(matrix * weights[:, None], times * weights, rcond=None)[0]
    if fixed <= 0 or slope <= 0:
        slope = float(times[-1] / (traffic[-1] * 1e-3))
        fixed = 0.01 * float(times.min())
    return 1 / float(slope), float(fixed)


def _prefill(timer: Timer, sizes: Sizes, call_us: float) -> tuple[float, float]:
    """(TFLOP/s at long context, context tokens at half of it) from causal self-attention.

    With ``rate = top * S / (S + ramp)`` the time a token pair is linear in 1/S.
    """
    lengths = np.asarray(sizes.prefill_tokens, dtype=np.float64)
    width = sizes.attention_heads * sizes.attention_head_dim
    operations = 2 * lengths**2 * width
    times = np.asarray([timer.prefill_attention_us(int(length)) for length in lengths])
    seconds_per_operation = np.maximum(times - call_us, _LEAST_SHARE * times) / operations
    matrix = np.stack([np.ones(len(lengths)), 1 / lengths], axis=1)
    weights = 1 / seconds_per_operation
    top, slope = np.linalg.lstsq(
        matrix * weights[:, None], seconds_per_operation * weights, rcond=None
    )[0]
    if top <= 0:
        top, slope = float(seconds_per_operation[-1]), 0.0
    return 1e-6 / float(top), max(float(slope / top), 0.0)
