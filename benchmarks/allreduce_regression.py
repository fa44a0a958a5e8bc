"""The GPU all-reduce of two source trees, alternating in one run; and what the public call costs.

    python benchmarks/allreduce_regression.py --old OLD/src --new NEW/src --ranks 4 -o ratios.json

Every alternation starts torchrun once a tree (PYTHONPATH says which), takes the median over its
repeats of every size, and prints new over old of the medians over all alternations: in captured
graphs and launched one by one. The new tree also times ``weft.all_reduce`` beside the
communicator's own method.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SIZES = tuple(1 << power for power in range(10, 27))


def measure(repeats: int) -> None:
    """One rank: microseconds a call by mode and size, on rank 0 as one JSON line."""
    import torch
    import torch.distributed as dist

    from weft.kernels.communicator import DeviceAllReduce

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    communicator = DeviceAllReduce(dist.group.WORLD, use_fabric=False)
    rows = {
        f"{mode} {size}": slowest(time_of(communicator, size, repeats))
        for size in SIZES
        for mode, time_of in (("graph", graph_us), ("eager", eager_us))
    }
    with contextlib.suppress(AttributeError):  # the old tree's public function has no kernels
        rows |= public_us(repeats)
    if dist.get_rank() == 0:
        print(json.dumps(rows), flush=True)
    communicator.close()
    dist.destroy_process_group()


def slowest(values: list[float]) -> float:
    """The median over repeats of the slowest rank."""
    import torch
    import torch.distributed as dist

    mine = torch.tensor(values, device="cuda", dtype=torch.float64)
    dist.all_reduce(mine, op=dist.ReduceOp.MAX)
    return statistics.median(mine.tolist())


def graph_us(communicator, size: int, repeats: int) -> list[float]:
    """Calls of one size inside a captured graph."""
    import torch

    tensor = torch.zeros(size // 2, device="cuda", dtype=torch.bfloat16)
    calls = 40 if size <= 1 << 20 else 12 if size <= 8 << 20 else 4
    communicator.all_reduce(tensor)
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(calls):
            communicator.all_reduce(tensor)
    return timed(graph.replay, repeats, calls)


def eager_us(communicator, size: int, repeats: int) -> list[float]:
    """Calls of one size launched from Python."""
    import torch

    tensor = torch.zeros(size // 2, device="cuda", dtype=torch.bfloat16)

    def calls() -> None:
        for _ in range(20):
            communicator.all_reduce(tensor)

    return timed(calls, repeats, 20)


def timed(work, repeats: int, calls: int) -> list[float]:
    """Microseconds a call of each of ``repeats``, after three that are not timed."""
    import torch

    values = []
    for turn in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        work()  # brings all ranks together
        start.record()
        work()
        end.record()
        end.synchronize()
        if turn >= 3:
            values.append(start.elapsed_time(end) * 1e3 / calls)
    return values


def public_us(repeats: int) -> dict[str, float]:
    """Host time of a call of 8 KiB: the public function, and its reducer's own method."""
    import torch

    import weft
    from weft.comm import all_reduce as public

    tensor = torch.zeros(4096, device="cuda", dtype=torch.bfloat16)
    weft.all_reduce(tensor)
    (method,) = (reducer.all_reduce for reducer in public._reducers.values())  # noqa: SLF001
    found: dict[str, list[float]] = {"host weft.all_reduce": [], "host method": []}
    for _ in range(repeats * 5):
        for name, call in zip(found, (weft.all_reduce, method), strict=True):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(50):
                call(tensor)
            found[name].append((time.perf_counter() - start) / 50 * 1e6)
    return {name: statistics.median(values) for name, values in found.items()}


def run(tree: Path, ranks: int, repeats: int) -> dict[str, float]:
    """One tree's rows."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={ranks}", __file__, "--repeats", str(repeats),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{tree}: {done.stderr[-2000:]}")
    rows: dict[str, float] = json.loads(lines[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path)
    parser.add_argument("--new", type=Path)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--alternations", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        measure(arguments.repeats)
        return
    trees = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    runs: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for turn in range(arguments.alternations):
        for name in sorted(trees, reverse=bool(turn % 2)):  # neither is always the first
            runs[name].append(run(trees[name], arguments.ranks, arguments.repeats))
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in runs.items()
    }
    report(medians)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"medians": medians, "runs": runs}, indent=1))


def report(medians: dict[str, dict[str, float]]) -> None:
    """The table, the worst ratio, and the public function's overhead."""
    old, new = medians["old"], medians["new"]
    for key in old:
        print(
            f"{key:>18} old {old[key]:9.2f} us  new {new[key]:9.2f} us  {new[key] / old[key]:.3f}"
        )
    for mode in ("graph", "eager"):
        worst = max(
            (key for key in old if key.startswith(mode)), key=lambda key: new[key] / old[key]
        )
        print(f"worst in {mode}: {worst}, {new[worst] / old[worst]:.3f} (bound 1.02)")
    above = new["host weft.all_reduce"] - new["host method"]
    print(f"weft.all_reduce above the method: {above:.2f} us (bound 1.5)")


if __name__ == "__main__":
    main()
