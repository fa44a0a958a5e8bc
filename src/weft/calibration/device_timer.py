"""Times single operations with torch: inside a CUDA graph on a GPU, by the clock on a CPU.

Operands rotate through copies that together exceed the caches, so that weights come from
memory as they do between the layers of a model. torch is imported when a timer is made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

from weft.errors import EnvironmentUnavailable, UserError

_GPU_CACHE_BYTES: Final = 256 << 20
_CPU_CACHE_BYTES: Final = 64 << 20
_MOST_COPIES: Final = 16
_CALLS: Final = 20
_GRAPH_CALLS: Final = 40
_REPEATS: Final = 5
_WARM_UP_S: Final = 0.5

Call = Callable[[int], Any]


class DeviceTimer:
    """The :class:`weft.calibration.calibrate_accelerator.Timer` of a real device."""

    def __init__(self, device: str | None = None) -> None:
        import torch

        self._torch = torch
        self.device = _device(torch, device)
        self.is_cpu = self.device.type == "cpu"
        self.dtype = torch.float32 if self.is_cpu else torch.bfloat16
        self._cache_bytes = _CPU_CACHE_BYTES if self.is_cpu else _GPU_CACHE_BYTES
        self._heads, self._head_dim = 8, 64
        if not self.is_cpu:
            torch.cuda.set_device(self.device)
            self._warm_up()

    def _warm_up(self) -> None:
        """Work until the clocks are up: an idle GPU runs at a fraction of them."""
        square = self._random(4096, 4096)
        end = time.perf_counter() + _WARM_UP_S
        while time.perf_counter() < end:
            for _ in range(10):
                square @ square
            self._synchronize()

    def set_heads(self, heads: int, head_dim: int) -> None:
        """Shape of the attention that is measured."""
        self._heads, self._head_dim = heads, head_dim

    @property
    def name(self) -> str:
        if self.is_cpu:
            return f"cpu-{self._torch.get_num_threads()}-threads"
        found: str = self._torch.cuda.get_device_name(self.device)
        return found.lower().replace(" ", "-")

    @property
    def method(self) -> str:
        how = "wall clock" if self.is_cpu else f"{self.name}, CUDA graph"
        return f"measured here (torch {self._torch.__version__}, {how}, best of {_REPEATS})"

    @property
    def element_bytes(self) -> int:
        return 4 if self.is_cpu else 2

    @property
    def memory_gb(self) -> float:
        if self.is_cpu:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 1e-9
        total: int = self._torch.cuda.mem_get_info(self.device)[1]
        return total * 1e-9

    def matmul_us(self, rows: int, n: int, k: int) -> float:
        left = self._random(rows, k)
        weights = [self._random(n, k) for _ in range(self._copies(n * k))]
        linear = self._torch.nn.functional.linear
        return self._time_us(lambda call: linear(left, weights[call % len(weights)]))

    def matmul8_us(self, rows: int, n: int, k: int) -> float | None:
        """An 8-bit floating-point product, or None where device or torch has none."""
        if self.is_cpu or self._torch.cuda.get_device_capability(self.device) < (8, 9):
            return None
        try:
            return self._matmul8_us(rows, n, k)
        except (RuntimeError, AttributeError, TypeError):
            return None

    def _matmul8_us(self, rows: int, n: int, k: int) -> float:
        float8 = self._torch.float8_e4m3fn
        left = self._random(rows, k).to(float8)
        weights = [self._random(n, k).to(float8).t() for _ in range(self._copies(n * k))]
        one = self._torch.ones((), device=self.device)

        def product(call: int) -> Any:
            return self._torch._scaled_mm(  # noqa: SLF001 - torch has no public name for it
                left,
                weights[call % len(weights)],
                scale_a=one,
                scale_b=one,
                out_dtype=self.dtype,
                use_fast_accum=True,
            )

        return self._time_us(product)

    def copy_us(self, num_bytes: int) -> float:
        source = self._torch.zeros(num_bytes, dtype=self._torch.uint8, device=self.device)
        target = self._torch.empty_like(source)
        # By the clock on a GPU too: a copy inside a graph runs at two thirds of the rate.
        return self._clocked_us(lambda _: target.copy_(source))

    def decode_attention_us(self, sequences: int, context: int) -> float:
        shape = (sequences, self._heads, context, self._head_dim)
        elements = sequences * self._heads * context * self._head_dim
        caches = [
            (self._random(*shape), self._random(*shape)) for _ in range(self._copies(2 * elements))
        ]
        query = self._random(sequences, self._heads, 1, self._head_dim)
        attend = self._torch.nn.functional.scaled_dot_product_attention
        return self._fastest_attention_us(lambda call: attend(query, *caches[call % len(caches)]))

    def prefill_attention_us(self, tokens: int) -> float:
        query, key, value = (self._random(1, self._heads, tokens, self._head_dim) for _ in range(3))
        attend = self._torch.nn.functional.scaled_dot_product_attention
        return self._fastest_attention_us(lambda _: attend(query, key, value, is_causal=True))

    def _fastest_attention_us(self, call: Call) -> float:
        """The fastest of torch's implementations that can do it."""
        if self.is_cpu:
            return self._time_us(call)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        times = []
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            try:
                with sdpa_kernel(backend):
                    times.append(self._time_us(call))
            except RuntimeError:
                self._synchronize()
        return min(times) if times else self._time_us(call)

    def elementwise_us(self) -> float:
        row = self._random(1, 4096)
        return self._time_us(lambda _: self._torch.nn.functional.silu(row))

    def launch_us(self) -> float:
        """Host time of one small operator: launches are queued, not waited for."""
        row = self._random(1, 4096)
        silu, calls, best = self._torch.nn.functional.silu, 500, float("inf")
        for _ in range(_REPEATS):
            self._synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                silu(row)
            best = min(best, time.perf_counter() - start)
        self._synchronize()
        return best / calls * 1e6

    def host_step_us(self) -> float:
        """Host time of one step around the model: ids in, argmax of the logits, ids out."""
        logits = self._random(8, 32000)

        def step() -> None:
            ids = self._torch.tensor(list(range(8)), dtype=self._torch.int64)
            ids.to(self.device)
            logits.argmax(dim=-1).tolist()

        return self._clocked_us(lambda _: step())

    def _random(self, *shape: int) -> Any:
        return self._torch.randn(*shape, dtype=self.dtype, device=self.device)

    def _copies(self, elements: int) -> int:
        size = elements * self.element_bytes
        return max(1, min(_MOST_COPIES, -(-self._cache_bytes // size)))

    def _synchronize(self) -> None:
        if not self.is_cpu:
            self._torch.cuda.synchronize(self.device)

    def _time_us(self, call: Call) -> float:
        with self._torch.inference_mode():
            if self.is_cpu:
                return self._clocked_us(call)
            return self._graphed_us(call)

    def _clocked_us(self, call: Call) -> float:
        call(0)
        self._synchronize()
        start = time.perf_counter()
        call(0)
        self._synchronize()
        first = time.perf_counter() - start
        calls = max(3, min(_CALLS, int(0.05 / max(first, 1e-7))))

        def run() -> None:
            for index in range(calls):
                call(index)

        return self._best_of(run, calls)

    def _best_of(self, run: Callable[[], None], calls: int) -> float:
        best = float("inf")
        for _ in range(_REPEATS):
            self._synchronize()
            start = time.perf_counter()
            run()
            self._synchronize()
            best = min(best, time.perf_counter() - start)
        return best / calls * 1e6

    def _graphed_us(self, call: Call) -> float:
        """Time of one call inside a graph of many, by the device's own clock."""
        cuda = self._torch.cuda
        side = cuda.Stream(self.device)
        side.wait_stream(cuda.current_stream(self.device))
        with cuda.stream(side):
            for index in range(3):
                call(index)
        self._synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(graph, stream=side):
            for index in range(_GRAPH_CALLS):
                call(index)
        graph.replay()
        return min(self._replay_us(graph) for _ in range(_REPEATS)) / _GRAPH_CALLS

    def _replay_us(self, graph: Any) -> float:
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._synchronize()
        start.record()
        graph.replay()
        end.record()
        self._synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds * 1e3


def _device(torch: Any, name: str | None) -> Any:
    """The torch device of a name; EnvironmentUnavailable where it is not there."""
    found = name
    if found is None:
        found = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(found)
    except RuntimeError:
        raise UserError(f"`device` {found}: write cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"`device` {found}: write cpu, cuda or cuda:1")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        sees = f"sees {count} CUDA device(s)" if count else "sees no CUDA device"
        raise EnvironmentUnavailable(f"`device` {found}: torch {sees} here; use `device` cpu")
    return (
        torch.device(device.type, device.index or 0) if count and device.type == "cuda" else device
    )
