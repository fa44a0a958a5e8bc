# ruff: noqa: ARG005, B023, BLE001 - closures are called at once, and a failing tile is a result
"""Times of the decode step's kernels on one GPU: which tile for which matrix, which split.

Run: PYTHONPATH=src python benchmarks/decode_kernels.py --output kernels.json
Every time is that of one call inside a captured graph that walks over more weights than
the L2 cache holds, the median of the replays. A product follows a pause that stands for the
norm or all-reduce in front of it: a kernel that lets the next one start and leaves the memory
alone; the pause's own time is taken off.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch.nn import functional as F

from weft.layers.fused import decode_attention as attention
from weft.layers.fused import elementwise, skinny_linear
from weft.layers.fused.language import begin, launch_options
from weft.layers.fused.skinny_linear import LinearWorkspace, Tile

BUDGET_S = float(os.environ.get("BUDGET_S", "200"))
STARTED = time.time()


def shapes():
    """(name, N, K, gated, pause in us) of the matrices of the 8B model at tp 1, 2, 4, 70B at tp 4."""
    for tp, pause_us in ((1, 1.5), (2, 5.0), (4, 7.0)):
        yield f"8b tp{tp} qkv", 6144 // tp, 4096, False, pause_us
        yield f"8b tp{tp} out", 4096, 4096 // tp, False, 1.5
        yield f"8b tp{tp} gate_up", 14336 // tp, 4096, True, pause_us
        yield f"8b tp{tp} down", 4096, 14336 // tp, False, 1.5
        yield f"8b tp{tp} head", 128256 // tp, 4096, False, pause_us
    yield "70b tp4 qkv", 2560, 8192, False, 9.0
    yield "70b tp4 out", 8192, 2048, False, 1.5
    yield "70b tp4 gate_up", 7168, 8192, True, 9.0
    yield "70b tp4 down", 8192, 7168, False, 1.5


def tiles(num_rows, n, k, gated):
    if num_rows == 1:
        for bn, bk, warps in ((2, 2048, 4), (4, 1024, 4), (4, 2048, 8), (8, 512, 4), (8, 1024, 8)):
            if bk <= k:
                yield Tile(block_n=bn, block_k=bk, num_warps=warps)
        return
    sizes = (32, 64, 128), (64, 128, 256), (1, 2, 4, 8), (3, 4, 6), (4, 8)
    for bn, bk, splits, stages, warps in itertools.product(*sizes):
        blocks = -(-n // bn) * splits
        shared = (bn * (2 if gated else 1) + 32) * bk * 2 * stages
        fit = min(-(-blocks // 132), 230_000 // shared)
        if (
            bk * splits <= k
            and (k // splits) % bk == 0
            and 90 <= blocks <= (900 if n < 20000 else 4000)
            and fit * shared >= 60_000
            and shared <= 220_000
            and (warps == 4 or (bn == 128 and bk >= 128))
        ):
            yield Tile(block_n=bn, block_k=bk, splits=splits, num_stages=stages, num_warps=warps)


@triton.jit
def _clock():
    return tl.inline_asm_elementwise(
        "mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1
    )


@triton.jit
def _pause(cycles_ptr, out_ptr, DEPENDENT: tl.constexpr):  # noqa: N803
    begin(DEPENDENT)
    cycles = tl.load(cycles_ptr)
    start = _clock()
    while _clock() - start < cycles:
        pass
    tl.store(out_ptr + tl.program_id(0), 0)


class Pause:
    """A kernel of ``us`` microseconds at 1.98 GHz."""

    def __init__(self, us):
        self.cycles = torch.full((1,), int(us * 1980), dtype=torch.int64, device="cuda")
        self.out = torch.zeros(32, dtype=torch.int64, device="cuda")
        self.us = graph_time_us(lambda i: self(), 32)

    def __call__(self):
        _pause[(32,)](self.cycles, self.out, num_warps=4, **launch_options(self.cycles))


def call(x, w, gated, tile, workspace):
    if tile is None:
        y = F.linear(x, w)
        return elementwise.silu_mul(y) if gated else y
    if len(x) == 1:
        return skinny_linear.one_row(x, w, gated=gated, tile=tile)
    return skinny_linear.few_rows(x, w, workspace=workspace, gated=gated, tile=tile)


def warm(job):
    """Compile one kernel into the cache on disk (its own process)."""
    num_rows, n, k, gated, tile = job
    try:
        x = torch.zeros(num_rows, k, dtype=torch.bfloat16, device="cuda")
        w = torch.zeros(n * (2 if gated else 1), k, dtype=torch.bfloat16, device="cuda")
        call(x, w, gated, tile, LinearWorkspace(x.device))
        torch.cuda.synchronize()
    except Exception as error:
        return f"{job}: {error!r}"[:300]
    return None


def graph_time_us(work, count):
    """Median microseconds of one of ``count`` calls ``work(i)`` in a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        keep = [work(i) for i in range(count)]
    graph.replay()
    times = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / count)
    del keep
    return statistics.median(times)


def bench_linear(rows, results):
    for name, n, k, gated, pause_us in shapes():
        pause = Pause(pause_us)
        wide = n * (2 if gated else 1)
        copies = max(2, min(40, int(500e6 / (wide * k * 2))))
        weights = [torch.randn(wide, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        for num_rows in rows:
            if time.time() - STARTED > BUDGET_S:
                return
            x = torch.randn(num_rows, k, device="cuda", dtype=torch.bfloat16)
            workspace = LinearWorkspace(x.device)
            full = F.linear(x.float(), weights[0].float())
            reference = F.silu(full[:, :n]) * full[:, n:] if gated else full
            for tile in (None, *tiles(num_rows, n, k, gated)):
                try:
                    got = call(x, weights[0], gated, tile, workspace).float()
                    error = ((got - reference).norm() / reference.norm()).item()
                    us = graph_time_us(
                        lambda i: (pause(), call(x, weights[i % copies], gated, tile, workspace)),
                        max(copies, 16),
                    )
                    us -= pause.us
                except Exception as problem:
                    print("FAILED", name, num_rows, tile, repr(problem)[:200], flush=True)
                    continue
                results.append(
                    {
                        "name": name,
                        "rows": num_rows,
                        "n": n,
                        "k": k,
                        "gated": gated,
                        "tile": None if tile is None else asdict(tile),
                        "us": us,
                        "gb_s": wide * k * 2 / us / 1e3,
                        "error": error,
                    }
                )
            of = [r for r in results if r["name"] == name and r["rows"] == num_rows]
            base, best = of[0], min(of, key=lambda r: r["us"])
            worst_error = max(r["error"] for r in of)
            print(
                f"{name:16} M={num_rows:3} cublas {base['us']:7.2f} us {base['gb_s']:5.0f} GB/s | best {best['us']:7.2f} us {best['gb_s']:5.0f} GB/s {best['tile']} err {worst_error:.1e}",
                flush=True,
            )


def bench_attention(results):
    for heads, kv in ((32, 8), (16, 4), (8, 2), (16, 2)):
        for batch, context in ((1, 200), (8, 1090), (32, 1090)):
            if time.time() - STARTED > BUDGET_S:
                return
            d, bs, layers = 128, 64, 8
            pages = -(-context // bs)
            like = torch.empty(0, device="cuda", dtype=torch.bfloat16)
            caches = [
                [
                    torch.randn(
                        (batch * pages + 1) * bs, kv, d, device="cuda", dtype=torch.bfloat16
                    )
                    for _ in range(2)
                ]
                for _ in range(layers)
            ]
            table = (torch.randperm(batch * pages, device="cuda") + 1).view(batch, pages).int()
            rows = torch.arange(batch, device="cuda").int()
            lengths = torch.full((batch,), context, device="cuda", dtype=torch.int32)
            qkv = torch.randn(batch, (heads + 2 * kv) * d, device="cuda", dtype=torch.bfloat16)
            cos_sin = torch.randn(4096, d, device="cuda")
            best = None
            for splits, tokens, warps, stages in itertools.product(
                (1, 2, 4, 8, 16, 32), (32, 64), (2, 4), (2, 3)
            ):
                if splits * kv * batch > 2048 or splits > context // tokens + 1:
                    continue
                shape = attention.Shape(
                    splits=splits, tokens=tokens, num_warps=warps, num_stages=stages
                )
                space = attention.DecodeWorkspace(batch, heads, kv, d, like)
                space.partial = torch.empty(1 << 24, device="cuda")

                def work(i):
                    cache = caches[i % layers]
                    return attention.decode_attention(
                        *(qkv, cos_sin, *cache, table, rows, lengths, space),
                        block_size=bs,
                        shape=shape,
                    )

                us = graph_time_us(work, 16)
                row = {
                    "name": f"attention h{heads} kv{kv}",
                    "batch": batch,
                    "context": context,
                    "us": us,
                    "gb_s": batch * context * kv * d * 4 / us / 1e3,
                    "shape": asdict(shape),
                }
                results.append(row)
                best = row if best is None or us < best["us"] else best
            print(best, flush=True)


def bench_rest(results):
    def add(name, us, **more):
        results.append({"name": name, "us": us, **more})
        print(f"{name}: {us:.2f} us {more}", flush=True)

    bf = {"device": "cuda", "dtype": torch.bfloat16}
    for rows in (1, 32, 8192):
        x, r, w = (
            torch.randn(rows, 4096, **bf),
            torch.randn(rows, 4096, **bf),
            torch.randn(4096, **bf),
        )
        add(
            f"add_rms_norm {rows}",
            graph_time_us(lambda i: elementwise.add_rms_norm(x, r, w, 1e-5), 16),
        )
    g = torch.randn(8192, 28672, **bf)
    us = graph_time_us(lambda i: elementwise.silu_mul(g), 4)
    add("silu_mul 8192", us, gb_s=8192 * 14336 * 6 / us / 1e3)
    x = torch.randn(1, 128256, **bf)
    add("argmax 1", graph_time_us(lambda i: x.argmax(-1), 8))
    x = torch.randn(32, 128256, **bf)
    add("argmax 32", graph_time_us(lambda i: x.argmax(-1), 8))
    qkv, cs = torch.randn(8192, 6144, **bf), torch.randn(4096, 128, device="cuda")
    pos, slots = torch.arange(8192, device="cuda") % 1024, torch.arange(8192, device="cuda")
    keys, values = torch.zeros(8192, 8, 128, **bf), torch.zeros(8192, 8, 128, **bf)
    add(
        "rotate_and_store 8192",
        graph_time_us(
            lambda i: elementwise.rotate_and_store(
                qkv, cs, pos, slots, keys, values, None, 0.0, block_size=64
            ),
            4,
        ),
    )
    for n, k in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)):
        x, w = torch.randn(8192, k, **bf), torch.randn(n, k, **bf)
        us = graph_time_us(lambda i: F.linear(x, w), 4)
        add(f"linear 8192x{n}x{k}", us, tflop_s=2 * 8192 * n * k / us / 1e6)
    q, k, v = (
        part.unflatten(1, (-1, 128)).unflatten(0, (8, 1024)).transpose(1, 2)
        for part in qkv.split([4096, 1024, 1024], 1)
    )
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            with sdpa_kernel(backend):
                us = graph_time_us(
                    lambda i: F.scaled_dot_product_attention(
                        q, k, v, is_causal=True, enable_gqa=True
                    ),
                    4,
                )
            add(f"sdpa {backend.name}", us, tflop_s=2 * 2 * 8 * 32 * 1024 * 512 * 128 / us / 1e6)
        except Exception as problem:
            print("FAILED", backend, repr(problem)[:200], flush=True)
    from torch.nn.attention import varlen

    print(inspect.signature(varlen.varlen_attn), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", default="decode_kernels.json")
    output = parser.parse_args().output
    rows = (1, 32)
    jobs = [(m, n, k, g, t) for m in rows for _, n, k, g, _ in shapes() for t in tiles(m, n, k, g)]
    seen, unique = set(), []
    for job in jobs:
        key = (job[0] == 1 or (job[0] + 15) // 16, job[2], job[3], str(job[4]))
        if key not in seen:
            seen.add(key)
            unique.append(job)
    print(len(unique), "kernels to compile", flush=True)
    pool = ProcessPoolExecutor(14, mp_context=get_context("spawn"))
    futures = [pool.submit(warm, job) for job in unique]
    results: list[dict] = []
    for future in futures:
        problem = future.result(timeout=120)
        if problem:
            print("FAILED compile", problem, flush=True)
    pool.shutdown()
    print(f"compiled at {time.time() - STARTED:.0f} s", flush=True)
    try:
        bench_rest(results)
        bench_linear(rows, results)
        bench_attention(results)
    finally:
        with Path(output).open("w", encoding="utf-8") as file:
            json.dump(
                {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": results},
                file,
            )
    print(f"done at {time.time() - STARTED:.0f} s", flush=True)


if __name__ == "__main__":
    main()
