"""Distil weft's own kernels of experts and of 8-bit products, as measured, into data/kernels.

    python benchmarks/distil_own_kernels.py [benchmarks/results/experts_and_eight_bits_h200.json]

Of every number of rows ``time = call + share x bytes at the data sheet's rate`` over the shapes in
16 bits; 8 bits have the same call. Beyond FEW rows the engine takes grouped products, whose line is
that of all numbers of rows together.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MEASURED = Path(__file__).parent / "results/experts_and_eight_bits_h200.json"
CURVES = Path(__file__).parents[1] / "src/weft/prediction/data/kernels/h200-sxm.json"
FEW = 64
# Products in 8 bits of Llama-3.1-8B on an H200 (docs/lab-log.md, "Experts of few rows and 8-bit
# weights"): µs of one row (gate and up, qkv, out) and of 32 (gate and up, down); more rows take the
# 16-bit rate, which is 0.714 of the peak.
PRODUCTS = {
    1: {28672 * 4096: 28.7, 6144 * 4096: 8.7, 4096 * 4096: 5.8},
    32: {28672 * 4096: 44.0, 14336 * 4096: 24.0},
}
MANY = [1024, 10.0, 2.8]
SHAPES = {
    "qwen3-30b tp1": "bfloat16",
    "qwen3-30b tp4": "bfloat16",
    "qwen3-30b fp8 tp1": "float8_e4m3fn",
}


def line(roof_us: Sequence[float], times_us: Sequence[float]) -> tuple[float, float]:
    """(call, share) with the least relative errors."""
    times = np.asarray(times_us)
    parts = np.stack([np.ones(len(times)), np.asarray(roof_us)], axis=1) / times[:, None]
    call, share = np.linalg.lstsq(parts, np.ones(len(times)), rcond=None)[0]
    return float(call), float(share)


def main() -> None:
    measured = json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else MEASURED).read_text())
    document = json.loads(CURVES.read_text())
    few: dict[int, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    grouped: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in measured["kernels"]:
        form = SHAPES.get(row["shape"])
        if form is not None:
            roof = row["bytes"] * 1e-3 / document["bandwidth_gb_s"]
            few[row["rows"]][form].append((roof, row["few_us"]))
            grouped[form].append((roof, row["grouped_us"]))
    curves: dict[str, list[list[float]]] = {form: [] for form in grouped}
    for rows, forms in sorted(few.items()):
        call, share = line(*zip(*forms["bfloat16"], strict=True))
        curves["bfloat16"].append([rows, round(call, 2), round(share, 3)])
        ((roof, time),) = forms["float8_e4m3fn"]
        curves["float8_e4m3fn"].append([rows, round(call, 2), round((time - call) / roof, 3)])
    for form, points in grouped.items():
        call, share = line(*zip(*points, strict=True))
        curves[form].append([2 * FEW, round(call, 2), round(share, 3)])
    products = []
    for rows, times in PRODUCTS.items():
        roof = [size * 1e-3 / document["bandwidth_gb_s"] for size in times]
        call, share = line(roof, list(times.values()))
        products.append([rows, round(call, 2), round(share, 3)])
    eight = {"float8_e4m3fn": [*products, MANY]}
    document["engines"]["weft"] = {
        "products": eight,
        "experts": curves,
        "attention": {},
        "latent": {},
    }
    text = json.dumps(document, separators=(",", ":"))
    CURVES.write_text(text.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
