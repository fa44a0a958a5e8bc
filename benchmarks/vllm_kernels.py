"""The ``vllm`` profile against single kernels of vLLM on H200, on layouts no run was measured of.

A layer of a decode step (products, attention, two custom all-reduces) and of a prefill
(products, attention) is added up from aiconfigurator's kernel tables (Apache-2.0, not part of
this repository) and held against the time model. Batches x prompt: 1 x 128, 8 and 32 x 1024.

Run, where pandas, pyarrow and aiconfigurator are installed:
    PYTHONPATH=src python benchmarks/vllm_kernels.py
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Final

from weft.prediction.collectives import Group
from weft.prediction.engine_device import EngineDevice, engine_device
from weft.prediction.machines import machine_named
from weft.prediction.operators import PartTimes, Shard, StepLoad, layer_times
from weft.vocabulary.model_source import load_spec

CASES: Final = [
    ("llama-3.1-8b", 2),
    ("llama-3.1-8b", 4),
    ("llama-3.1-70b", 4),
    ("llama-3.1-70b", 8),
]
DECODES: Final = [(1, 128), (8, 1024), (32, 1024)]
PREFILL: Final = (8, 1024)
VERSION: Final = "0.24.0"


class Tables:
    """Measured times in µs by shape."""

    def __init__(self, root: Path) -> None:
        pandas: Any = import_module("pandas")

        def read(*parts: str) -> Any:
            return pandas.read_parquet(root.joinpath(*parts))

        products = read("gemm", "vllm", VERSION, "gemm_perf.parquet")
        products = products[products.gemm_dtype == "bfloat16"]
        self.products = products.groupby(["m", "n", "k"]).latency.min() * 1e3
        self.decode = _attention(
            read("attention", "vllm", VERSION, "generation_attention_perf.parquet")
        )
        self.prefill = _attention(
            read("attention", "vllm", VERSION, "context_attention_perf.parquet")
        )
        reduce = read("comm", "vllm", VERSION, "custom_allreduce_perf.parquet")
        reduce = reduce[reduce.backend == "vllm_graph"]
        self.reduce = reduce.groupby(["num_gpus", "message_size"]).latency.min() * 1e3

    def product_us(self, rows: int, n: int, k: int) -> float:
        """Interpolated over n where the table lacks it."""
        if (rows, n, k) in self.products:
            return float(self.products[rows, n, k])
        widths = [
            width
            for width in self.products[rows].index.get_level_values("n").unique()
            if (rows, width, k) in self.products
        ]
        low, high = max(w for w in widths if w < n), min(w for w in widths if w > n)
        share = (n - low) / (high - low)
        first, last = self.products[rows, low, k], self.products[rows, high, k]
        return float(first + share * (last - first))

    def reduce_us(self, ranks: int, size: int) -> float:
        return float(self.reduce[ranks, size])


def _attention(table: Any) -> Any:
    same = (table.kv_cache_dtype == "bfloat16") & (table.head_dim == 128) & (table.window_size == 0)
    keys = ["batch_size", "isl", "num_heads", "num_key_value_heads", "step"]
    return table[same].groupby(keys).latency.min() * 1e3


def compare(tables: Tables, model: str, tp: int) -> Iterator[tuple[str, float, float]]:
    """(name, measured µs, predicted µs) of one layer."""
    spec, machine = load_spec(model), machine_named("vllm", "h200-sxm")
    shard = Shard(spec=spec, tp=tp, sp=1, ep=1)
    device = engine_device(machine.accelerator, machine.profile, all_reduces=True)
    heads, kv_heads = spec.num_heads // tp, max(1, spec.num_kv_heads // tp)
    for batch, context in DECODES:
        size = batch * spec.hidden_size * 2
        step = StepLoad(decode_sequences=batch, decode_context=context)
        measured = _products(tables, shard, batch)
        measured += float(tables.decode[batch, 1, heads, kv_heads, context - 1])
        measured += 2 * tables.reduce_us(tp, size)
        predicted = _without_elementwise(shard, step, device)
        group = Group(nodes=1, gpus_per_node=tp)
        predicted += 2 * machine.pricing.cached("all_reduce", size, group).time_us
        yield f"{model} tp{tp} decode {batch} x {context}", measured, predicted
    batch, prompt = PREFILL
    measured = _products(tables, shard, batch * prompt)
    measured += float(tables.prefill[batch, prompt, heads, kv_heads, 0])
    step = StepLoad(
        prefill_tokens=batch * prompt, prefill_sequences=batch, prefill_context=prompt / 2
    )
    predicted = _without_elementwise(shard, step, device)
    yield f"{model} tp{tp} prefill {batch} x {prompt}", measured, predicted


def _products(tables: Tables, shard: Shard, rows: int) -> float:
    spec, width = shard.spec, shard.spec.intermediate_size // shard.tp
    query, hidden = int(shard.query_size), spec.hidden_size
    attention = (query + 2 * int(shard.kv_size), hidden), (hidden, query)
    shapes = *attention, (2 * width, hidden), (hidden, width)
    return sum(tables.product_us(rows, n, k) for n, k in shapes)


def _without_elementwise(shard: Shard, step: StepLoad, device: EngineDevice) -> float:
    times: PartTimes = layer_times(shard, step, device)
    return times.matmul_us + times.attention_us


def main() -> None:
    systems = Path(str(resources.files("aiconfigurator_core"))) / "systems"
    tables = Tables(systems / "data" / "h200_sxm")
    errors: dict[str, list[float]] = {"decode": [], "prefill": []}
    for model, tp in CASES:
        for name, measured, predicted in compare(tables, model, tp):
            error = predicted / measured - 1
            errors[name.split()[2]].append(error)
            print(f"{name:36} measured {measured:8.1f} predicted {predicted:8.1f} {error:+6.1%}")
    for phase, values in errors.items():
        mean = statistics.mean(map(abs, values))
        print(f"{phase:36} mean of absolute errors {mean:.1%} of {len(values)}")


if __name__ == "__main__":
    main()
