"""Times of a mixture's kernels on one GPU: router, few rows by tile, grouped products.

Run: PYTHONPATH=src python benchmarks/expert_kernels.py --output FILE [--sweep]
Each time is that of one layer inside a captured graph that walks over the weights of several
layers (more than the L2 cache holds), the median of the replays. ``bandwidth`` is the bytes of
the experts that were taken over the time; ``copy`` is that of a large copy in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from decode_kernels import graph_time_us
from weft.layers.fused import few_experts as kernels
from weft.layers.fused.few_experts import ExpertTile, ExpertTiles
from weft.layers.linear import Placement
from weft.models.experts import RoutedExperts
from weft.models.routing import Router
from weft.models.weights import fill_dummy
from weft.vocabulary.feed_forward_kinds import Experts, Routing
from weft.vocabulary.routes import Routes
from weft.vocabulary.tensor_names import TensorNames
from weft.vocabulary.weight_formats import FORMATS

LAYERS = 8
SHAPES = {
    "qwen3-30b tp1": (2048, 128, 8, 768, "bfloat16"),
    "qwen3-30b tp4": (2048, 128, 8, 192, "bfloat16"),
    "qwen3-30b fp8 tp1": (2048, 128, 8, 768, "float8_e4m3fn"),
    "qwen3-30b fp8 blocks tp1": (2048, 128, 8, 768, "fp8_block"),
}
ROWS = (1, 2, 4, 8, 16, 32, 64)


def swept(shape: tuple) -> tuple[int, ...]:
    """Rows for which tiles are tried."""
    return (1, 8, 32) if FORMATS[shape[-1]].is_held else (1,)


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy of 2 GiB."""
    source = torch.empty(1 << 29, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    us = graph_time_us(lambda _: target.copy_(source), 2)
    return 2 * source.nbytes / us * 1e6


class Mixture:
    """LAYERS routers and experts with random weights, and rows for them."""

    def __init__(
        self, hidden: int, experts: int, top: int, width: int, form: str, *, layers: int = LAYERS
    ) -> None:
        kind = Experts(
            num_experts=experts,
            experts_per_token=top,
            intermediate_size=width,
            routing=Routing(),
            format=FORMATS[form],
        )
        where = Placement(tp_rank=0, tp_size=1, dtype=torch.bfloat16, device=torch.device("cuda"))
        names, every = TensorNames(), range(experts)
        self.hidden, self.expert_bytes = hidden, 3 * hidden * width * FORMATS[form].bytes
        self.routers = [Router(kind, hidden, "x", names, where) for _ in range(layers)]
        self.experts = [
            RoutedExperts(kind, hidden, "x", names, every, where) for _ in range(layers)
        ]
        for seed, layer in enumerate((*self.routers, *self.experts)):
            fill_dummy(layer, seed)

    def rows(self, count: int) -> torch.Tensor:
        return torch.randn(count, self.hidden, device="cuda", dtype=torch.bfloat16)

    def taken(self, routes: list[Routes]) -> float:
        """Bytes of the experts that a layer's routes take, on average."""
        counts = [len(r.ids.unique()) for r in routes]
        return statistics.mean(counts) * self.expert_bytes


def tiles(rows: int, *, is_scaled: bool) -> list[ExpertTiles]:
    """What to try, around what ships."""
    base = kernels.tiles_for(rows, is_scaled=is_scaled)
    if rows == 1:
        shapes = (4, 2048, 4), (4, 1024, 4), (8, 1024, 4), (8, 2048, 8), (2, 2048, 4)
        inner = [ExpertTile(block_n=n, block_k=k, num_warps=w) for n, k, w in shapes]
        shapes = (8, 128, 4), (4, 128, 4), (4, 256, 4), (8, 256, 8), (16, 64, 4), (16, 128, 8)
        outer = [ExpertTile(block_n=n, block_k=k, num_warps=w) for n, k, w in shapes]
    else:
        inner = outer = [
            ExpertTile(block_n=n, block_k=k, num_stages=s, num_warps=w)
            for n, k, s, w in itertools.product((32, 64), (64, 128), (3, 4), (2, 4))
            if n * k * s * 4 <= 110_000
        ]
    return [
        base,
        *(ExpertTiles(inner=tile, outer=base.outer) for tile in inner),
        *(ExpertTiles(inner=base.inner, outer=tile) for tile in outer),
    ]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sweep", action="store_true")
    arguments = parser.parse_args()
    if arguments.sweep:
        compile_all()
    copy = copy_bandwidth()
    found = []
    for name, shape in SHAPES.items():
        mixture = Mixture(*shape)
        for rows in ROWS:
            result = {"shape": name, **measured(mixture, rows, copy)}
            if arguments.sweep and rows in swept(shape):
                result["sweep"] = sweep(mixture, rows)
            found.append(result)
            print(json.dumps({k: v for k, v in result.items() if k != "sweep"}), flush=True)
            for row in result.get("sweep", [])[:6]:
                print("   ", json.dumps(row), flush=True)
        del mixture
        torch.cuda.empty_cache()
    document = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
        "copy_bytes_per_s": copy, "rows": found,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(document, indent=1), encoding="utf-8")


def compile_all() -> None:
    """Every kernel of the sweep into Triton's cache on disk, many at a time."""
    jobs = [
        (shape, rows, tile)
        for shape in SHAPES.values()
        for rows in swept(shape)
        for tile in tiles(rows, is_scaled=FORMATS[shape[-1]].is_held)
    ]
    with ProcessPoolExecutor(14, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_one, jobs))


@torch.inference_mode()
def compile_one(job: tuple[tuple[int, int, int, int, str], int, ExpertTiles]) -> None:
    """One call on few experts: their number is no constant of the kernels."""
    from weft.layers.fused.products import workspace

    (hidden, _, top, width, form), rows, tile = job
    mixture = Mixture(hidden, top, top, width, form, layers=1)
    x = mixture.rows(rows)
    weights = mixture.experts[0].kernel_weights
    with contextlib.suppress(Exception):
        kernels.few_experts(
            x, mixture.routers[0](x), weights, workspace=workspace(x.device), tiles=tile
        )
        torch.cuda.synchronize()


def measured(mixture: Mixture, rows: int, copy: float) -> dict:
    """Times, shares of the copy's bandwidth and errors of the ways that there are."""
    x = mixture.rows(rows)
    routes = [router(x) for router in mixture.routers]
    taken = mixture.taken(routes)
    expected = mixture.experts[0].each_on_its_rows(x, routes[0]).float()
    found = {"rows": rows, "bytes": taken}
    found["router_us"] = graph_time_us(lambda i: mixture.routers[i % LAYERS](x), 2 * LAYERS)
    for way in ("few", "grouped"):
        calls = [getattr(layer, way) for layer in mixture.experts]
        us = graph_time_us(
            lambda i, calls=calls: calls[i % LAYERS](x, routes[i % LAYERS]), 2 * LAYERS
        )
        error = (calls[0](x, routes[0]).float() - expected).norm() / expected.norm()
        found |= {f"{way}_us": us, f"{way}_bandwidth": taken / us * 1e6 / copy}
        found[f"{way}_error"] = error.item()
    return found


def sweep(mixture: Mixture, rows: int) -> list[dict]:
    """Times by tile, the fastest first."""
    from weft.layers.fused.products import workspace

    x, found = mixture.rows(rows), []
    routes, space = [router(x) for router in mixture.routers], workspace(x.device)
    every = [layer.kernel_weights for layer in mixture.experts]
    for tile in tiles(rows, is_scaled=every[0].gate_up_scales is not None):

        def work(i: int, tile: ExpertTiles = tile) -> torch.Tensor:
            at = i % LAYERS
            return kernels.few_experts(x, routes[at], every[at], workspace=space, tiles=tile)

        try:
            found.append({"us": graph_time_us(work, 2 * LAYERS), "tile": repr(tile)})
        except Exception as problem:  # noqa: BLE001 - a tile that does not fit is a result
            print("FAILED", tile, repr(problem)[:200], flush=True)
    return sorted(found, key=lambda row: row["us"])


if __name__ == "__main__":
    main()
