"""Distil aiconfigurator's public kernel tables into the curves of weft/prediction/data/kernels.

Run (in an environment with aiconfigurator-core 0.12.0, pandas and scipy):
    python benchmarks/distil_kernels.py SYSTEMS_DIR src/weft/prediction/data/kernels
SYSTEMS_DIR is aiconfigurator_core/systems. Of every (GPU, engine, format) it keeps, a number of
rows: ``time = call + share x roofline``, the roofline being the 3-norm of bytes over the data
sheet's bandwidth and operations over its peak. Printed is the mean relative error of each. Curves
that show a launch or a kernel that was not tuned for that GPU are left out (``drop_untuned``).
The tables are NVIDIA's, Apache-2.0; so are the curves made of them (data/kernels/NOTICE).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import nnls

# Device memory in GB/s, dense peaks in TFLOP/s of 16, 8 and 4 bits, as in SYSTEMS_DIR/*.yaml.
PEAKS = {
    "h100-sxm": ("h100_sxm", 3350, 989, 1979, 0),
    "h200-sxm": ("h200_sxm", 4800, 989, 1979, 0),
    "b200-sxm": ("b200_sxm", 7700, 2250, 4500, 9000),
    "b300-sxm": ("b300_sxm", 7700, 2250, 4500, 13500),
    "gb200": ("gb200", 8000, 2500, 5000, 10000),
    "gb300": ("gb300", 8000, 2500, 5000, 15000),
    "l40s": ("l40s", 864, 362, 733, 0),
    "a100-80g": ("a100_sxm", 2039, 312, 0, 0),
}
ENGINES = ("vllm", "sglang", "trtllm")
# The table's name of a format: weft's name, bytes of a weight, which peak (0 = 16 bits).
FORMATS = {
    "bfloat16": ("bfloat16", 2.0, 0),
    "fp8": ("float8_e4m3fn", 1.0, 1),
    "fp8_block": ("fp8_block", 1.0, 1),
    "nvfp4": ("nvfp4", 0.5625, 2),
    "int4_wo": ("int4", 0.5625, 0),
    "w4a16_mxfp4": ("mxfp4_a16", 0.53125, 0),
    "w4a8_mxfp4_mxfp8": ("mxfp4", 0.53125, 1),
}
ROUTING = "power_law_1.2"
# 16 bits of vLLM on Hopper: weft has measured constants of its own (h200-sxm.json).
OWN = {("h100-sxm", "vllm"), ("h200-sxm", "vllm")}


def line(parts: list[Any], times: Any) -> tuple[Any, float]:
    """Non-negative coefficients with small relative errors, outliers counting less."""
    matrix = np.stack(parts, axis=1) / times[:, None]
    weights = np.ones(len(times))
    for _ in range(6):
        found, _ = nnls(matrix * weights[:, None], weights)
        errors = np.abs(matrix @ found - 1)
        weights = 1 / np.sqrt(np.maximum(errors, 0.03))
    return found, float(errors.mean())


def norm(memory: Any, compute: Any) -> Any:
    return (memory**3 + compute**3) ** (1 / 3)


def curve(table: pd.DataFrame, rows: str) -> tuple[list[list[float]], float] | None:
    """[[rows, call_us, share]] at about 16 numbers of rows, and the mean error."""
    found = []
    for count, group in table.groupby(rows):
        if len(group) >= 6:
            (call, share), error = line([np.ones(len(group)), group.roof.values], group.us.values)
            found.append((float(count), float(call), float(share), error))
    if not found:
        return None
    logs = np.log([item[0] for item in found])
    kept = sorted({int(np.argmin(abs(logs - x))) for x in np.linspace(logs[0], logs[-1], 16)})
    points = [[found[i][0], round(found[i][1], 2), round(found[i][2], 3)] for i in kept]
    return points, float(np.mean([item[3] for item in found]))


def files(folder: Path, kind: str, engine: str, name: str) -> list[Path]:
    """Tables of all versions, newest last."""
    return sorted((folder / kind / engine).glob(f"*/{name}"))


def products(folder: Path, engine: str, peaks: tuple[Any, ...]) -> dict[str, Any]:
    tables = files(folder, "gemm", engine, "gemm_perf.parquet")
    if not tables:
        return {}
    every = pd.read_parquet(tables[-1])
    every = every[every.n.between(256, 40000) & every.k.between(512, 32768)]
    found = {}
    for name, table in every.groupby("gemm_dtype"):
        if name not in FORMATS:
            continue
        own, size, peak = FORMATS[name]
        memory = (table.n * table.k * size + table.m * (table.n + table.k) * 2) * 1e-3 / peaks[1]
        compute = 2 * table.m * table.n * table.k * 1e-6 / (peaks[2 + peak] or peaks[2])
        found[own] = curve(table.assign(roof=norm(memory, compute), us=table.latency * 1e3), "m")
    return {name: item for name, item in found.items() if item}


def experts(folder: Path, engine: str, peaks: tuple[Any, ...]) -> dict[str, Any]:
    tables = files(folder, "moe", engine, "moe_perf.parquet")
    if not tables:
        return {}
    every = pd.concat([pd.read_parquet(path) for path in tables])
    every = every[
        (every.distribution == ROUTING)
        & (every.num_experts >= 64)
        & (every.inter_size / every.moe_tp_size >= 64)
        & (every.num_experts / every.moe_ep_size >= 8)
    ]
    shape = ["num_tokens", "hidden_size", "inter_size", "topk", "num_experts"]
    found = {}
    for name, group in every.groupby("moe_dtype"):
        if name not in FORMATS:
            continue
        table = group.groupby([*shape, "moe_tp_size", "moe_ep_size"]).latency.min().reset_index()
        own, size, peak = FORMATS[name]
        rows, inner = table.num_tokens, table.inter_size / table.moe_tp_size
        chosen = table.topk / table.num_experts
        touched = table.num_experts / table.moe_ep_size * (1 - (1 - chosen) ** rows)
        pairs = rows * table.topk / table.moe_ep_size
        memory = 3 * touched * table.hidden_size * inner * size
        memory = (memory + pairs * (table.hidden_size + inner) * 4) * 1e-3 / peaks[1]
        compute = 6 * pairs * table.hidden_size * inner * 1e-6 / (peaks[2 + peak] or peaks[2])
        table = table.assign(roof=norm(memory, compute), us=table.latency * 1e3)
        found[own] = curve(table, "num_tokens")
    return {name: item for name, item in found.items() if item}


def attention(
    folder: Path, engine: str, peaks: tuple[Any, ...], kind: str, stem: str
) -> dict[str, Any]:
    """Decode: call, share of the cache's bytes, share of operations; prefill: call, two shares."""
    found: dict[str, Any] = {}
    for phase, part in (("decode", "generation"), ("prefill", "context")):
        tables = files(folder, kind, engine, f"{part}_{stem}_perf.parquet")
        if not tables:
            continue
        every = pd.read_parquet(tables[-1])
        if kind == "attention":
            every = every[every.head_dim == 128]
            if "window_size" in every:
                every = every[every.window_size == 0]
        for cache, table in every.groupby("kv_cache_dtype"):
            if cache not in ("bfloat16", "fp8"):
                continue
            known = _attention_line(table, phase, kind, 1 if cache == "fp8" else 2, peaks)
            found[f"{phase} {8 if cache == 'fp8' else 16}"] = known
    return found


def _attention_line(
    table: pd.DataFrame, phase: str, kind: str, size: int, peaks: tuple[Any, ...]
) -> tuple[list[float], float]:
    latent = kind == "mla"
    if phase == "decode":
        table = table[table.step >= 64]
        width = 576 if latent else 2 * table.num_key_value_heads * 128
        memory = table.batch_size * table.step * width * size * 1e-3 / peaks[1]
        table, memory = table[memory < 2000], memory[memory < 2000]
        parts = [np.ones(len(table)), memory.values]
        if latent:
            operations = 2 * table.num_heads * (576 + 512)
            parts.append((table.batch_size * table.step * operations * 1e-6 / peaks[2]).values)
    else:
        table = table[(table.isl >= 64) & (table.isl * table.batch_size <= 65536)]
        width = 2 * table.num_heads * (320 if latent else 256)
        compute = table.batch_size * table.isl * table.isl / 2 * width * 1e-6 / peaks[2]
        parts = [np.ones(len(table)), compute.values, (compute / table.isl * 1000).values]
    found, error = line(parts, (table.latency * 1e3).values)
    values = [round(float(value), 3) for value in found]
    return values + [0.0] * (3 - len(values)), error


def drop_untuned(engines: dict[str, Any]) -> None:
    """Leave out curves that say more of the measurement than of the engine; another engine's serve.

    Products of one row that take more than 40 us (timed by the host's launches); what takes more
    than 1.8 times the bytes' time of the quickest engine with up to 32 rows; experts in 8 bits and
    caches in 8 bits that are slower than in 16 twice over.
    """
    for parts in engines.values():
        products = parts["products"]
        parts["products"] = {
            name: points for name, points in products.items() if not points or points[0][1] <= 40
        }
    for part in ("products", "experts"):
        names = {name for parts in engines.values() for name in parts[part]}
        for name in names:
            drop_slow({engine: parts[part] for engine, parts in engines.items()}, name)
    for parts in engines.values():
        curves, wide = parts["experts"], parts["experts"].get("bfloat16", [[1, 0, math.inf]])
        for name in ("float8_e4m3fn", "fp8_block"):
            if curves.get(name, [[1, 0, 0]])[0][2] > 4 * wide[0][2]:
                del curves[name]
        for lines in (parts["attention"], parts["latent"]):
            eight, sixteen = lines.get("decode 8"), lines.get("decode 16")
            if eight and sixteen and eight[1] > 4 * sixteen[1]:
                del lines["decode 8"]


def drop_slow(curves: dict[str, dict[str, Any]], name: str) -> None:
    """The curve ``name`` of every engine that is far behind the quickest one's."""
    shares = {
        engine: float(np.mean([share for rows, _, share in found[name] if rows <= 32]))
        for engine, found in curves.items()
        if found.get(name)
    }
    for engine, share in shares.items():
        if share > 1.8 * max(min(shares.values()), 0.9):
            del curves[engine][name]


def main() -> None:
    systems, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for device, peaks in PEAKS.items():
        folder = systems / "data" / peaks[0]
        document: dict[str, Any] = {
            "schema": "weft.kernels/1",
            "source": "aiconfigurator-core 0.12.0, systems/data, Apache-2.0 (see NOTICE); "
            "distilled by benchmarks/distil_kernels.py",
            "bandwidth_gb_s": peaks[1],
            "tflops": list(peaks[2:]),
            "engines": {},
        }
        for engine in ENGINES:
            parts = {
                "products": products(folder, engine, peaks),
                "experts": experts(folder, engine, peaks),
                "attention": attention(folder, engine, peaks, "attention", "attention"),
                "latent": attention(folder, engine, peaks, "mla", "mla"),
            }
            if (device, engine) in OWN:
                parts["products"]["bfloat16"] = ([], 0.0)
                parts["attention"]["decode 16"] = parts["attention"]["prefill 16"] = ([], 0.0)
            errors = {
                f"{part} {name}": round(item[1], 3)
                for part, items in parts.items()
                for name, item in items.items()
            }
            print(device, engine, errors)
            document["engines"][engine] = {
                part: {name: item[0] for name, item in items.items()}
                for part, items in parts.items()
            }
        drop_untuned(document["engines"])
        text = json.dumps(document, separators=(",", ":"))
        (target / f"{device}.json").write_text(text.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
