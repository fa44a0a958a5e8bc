"""The exchange of rows with experts, a direction at a time, beside the library's all-to-all.

    python benchmarks/expert_exchange.py --ranks 4 --rows 1,8,32 -o FILE

Starts torchrun with one rank a GPU. Microseconds of a call inside captured graphs (40 calls a
graph), the slowest rank of each replay, the median of the replays; all columns in one run. ``rows``
are those that each rank brings, routed at random. ``library dispatch`` and ``library combine`` are what weft
does without its kernels, ``all_to_all`` the library's call alone, padded to all rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from allreduce_regression import slowest, timed
from weft.kernels.communicator import DeviceAllReduce
from weft.kernels.reducer import Reducer
from weft.vocabulary.routes import Routes

CALLS = 40
BOUND_US = 8.0


def graph_us(call: Callable[[], Any], repeats: int) -> float:
    """Microseconds of ``call`` in a graph of CALLS, on the slowest rank."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
        for _ in range(CALLS):
            call()
    return round(slowest(timed(graph.replay, repeats, CALLS)), 2)


def routed(options: argparse.Namespace, rows: int, rank: int) -> tuple[torch.Tensor, Routes]:
    """Rows of a rank and their routes, at random."""
    generator = torch.Generator(device="cuda").manual_seed(rank)
    scores = torch.rand(rows, options.experts, generator=generator, device="cuda")
    weights, ids = scores.topk(options.chosen, dim=1)
    x = torch.randn(rows, options.hidden, generator=generator, device="cuda")
    routes = Routes(ids=ids, weights=weights, nobody=options.experts)
    return x.to(getattr(torch, options.dtype)), routes


def columns(
    comm: DeviceAllReduce, options: argparse.Namespace, rows: int
) -> dict[str, Callable[[], Any]]:
    """What is timed for so many rows."""
    inputs = routed(options, rows, comm.rank)
    there, here = comm.dispatch(*inputs)
    assert here.passages is not None, "the kernels do not take these rows"
    padded = torch.empty_like(there)
    return {
        "dispatch": lambda: comm.dispatch(*inputs),
        "combine": lambda: comm.combine(there, here),
        "library dispatch": lambda: Reducer.dispatch(comm, *inputs),
        "library combine": lambda: Reducer.combine(comm, there, replace(here, passages=None)),
        "all_to_all": lambda: dist.all_to_all_single(padded, there),
    }


def measure(options: argparse.Namespace) -> None:
    """One rank: a row a number of rows, on rank 0 as one JSON line."""
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    comm = DeviceAllReduce(dist.group.WORLD, use_fabric=False)
    found = []
    for rows in map(int, options.rows.split(",")):
        timed_calls = columns(comm, options, rows)
        times = {name: graph_us(call, options.repeats) for name, call in timed_calls.items()}
        found.append({"rows": rows, **times})
        comm.check()
    if comm.rank == 0:
        print(json.dumps(found), flush=True)
    comm.close()
    dist.destroy_process_group()


def start(options: argparse.Namespace) -> list[dict[str, float]]:
    """The rows of a run of its own processes."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={options.ranks}", *sys.argv,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    if not lines:
        raise SystemExit(done.stderr[-4000:])
    found: list[dict[str, float]] = json.loads(lines[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    parser.add_argument("--rows", default="1,2,8,16,32,64", help="of each rank")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--chosen", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        measure(options)
        return
    found = start(options)
    for row in found:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    worst = max(max(row["dispatch"], row["combine"]) for row in found if row["rows"] <= 32)
    print(f"slowest direction up to 32 rows: {worst} us (bound {BOUND_US:g} on 4 GPUs)")
    if options.output is not None:
        document = {
            "machine": {
                "gpu": f"{options.ranks} x {torch.cuda.get_device_name()}",
                "torch": torch.__version__,
                "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            },
            "about": __doc__,
            "command": " ".join(["python", *sys.argv]),
            "hidden": options.hidden, "experts": options.experts, "chosen": options.chosen,
            "dtype": options.dtype,
            "us": found,
        }  # fmt: skip
        options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
