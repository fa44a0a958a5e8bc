"""Launch shapes of the GPU all-reduce kernels, and lanes of the TCP transport, side by side.

    python benchmarks/allreduce_variants.py --ranks 4 --sizes 1K:64M -o shapes.json
    python benchmarks/allreduce_variants.py --ranks 4 --nodes 2 --transport tcp --lanes 2

What it finds goes into weft/kernels/launch_shapes.json by hand. Calls are interleaved and
checked as in ``weft bench allreduce``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from weft.bench.sizes import parse_sizes, size_text
from weft.kernels.selection import FLAT, GroupShape, Variant
from weft.launch.elastic import Launch, run_ranks

THREADS = (64, 128, 256, 512, 1024)
BLOCKS = (64, 132, 264, 400)


def shapes(topology: GroupShape, size: int) -> Iterator[Variant]:
    """Every shape worth trying for a message of ``size`` bytes."""
    for algorithm, threads, most in itertools.product(topology.algorithms, THREADS, BLOCKS):
        if algorithm == "one_shot" and topology.num_ranks > 2 and size > 512 << 10:
            continue
        if algorithm not in FLAT and (threads > 512 or most != 264):
            continue
        variant = Variant(algorithm=algorithm, threads=threads, max_blocks=most)
        blocks = variant.blocks(size, topology.sharing(algorithm))
        turns = size // 16 // topology.sharing(algorithm) // threads / blocks
        if turns <= (1 if size <= 1 << 20 else 10) and (blocks > most // 2 or most in (64, 264)):
            yield variant


def measure(arguments: argparse.Namespace) -> None:
    """One rank: every lane count, every shape."""
    import torch

    from weft.allreduce.selection import BACKEND
    from weft.bench.allreduce import Benchmark, Effort
    from weft.bench.allreduce_ranks import pose_as_hosts
    from weft.bench.device_runs import device_runs
    from weft.comm.groups import open_groups
    from weft.kernels import host_link
    from weft.kernels.communicator import DeviceAllReduce
    from weft.kernels.contenders import Contender, Job, open_field
    from weft.vocabulary.layout import Layout

    def job(comm: DeviceAllReduce, variant: Variant, source: torch.Tensor) -> Job | None:
        if variant not in set(shapes(comm.topology, source.nbytes)):
            return None
        work = torch.empty_like(source)

        def call() -> torch.Tensor:
            comm.use_variant(variant, work.dtype, work.numel())
            return comm.all_reduce(work)

        return Job(fresh=work.copy_, call=call)

    rank = int(os.environ["RANK"])
    topology = GroupShape(
        num_ranks=arguments.ranks, nodes=arguments.nodes, transport=arguments.transport
    )
    if arguments.transport == "tcp":
        pose_as_hosts(rank // topology.ranks_per_node)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    sizes = parse_sizes(arguments.sizes)
    with open_groups(
        Layout(tp=arguments.ranks), rank=rank, device=device, all_reduce="library"
    ) as groups:
        group = groups.process_group(groups.world.ranks)
        field = open_field(group, (BACKEND,), (), max_bytes=max(sizes), timeout_s=20)
        host_link.MAX_LANES = arguments.lanes
        comm = DeviceAllReduce(
            group,
            max_bytes=max(sizes),
            nodes=topology.nodes,
            transport=topology.transport,
            timeout_s=20,
        )
        every = {shape for size in sizes for shape in shapes(topology, size)}
        field.contenders += [
            Contender(
                name=f"{v.algorithm} {v.threads}x{v.max_blocks}", prepare=partial(job, comm, v)
            )
            for v in sorted(every, key=str)
        ]
        benchmark = Benchmark(groups.world, device_runs(field.contenders, "graph"), device)
        effort = Effort(rounds=arguments.rounds, warm_up=1, seconds_a_size=arguments.seconds)
        rows = benchmark.run(sizes, ["bfloat16"], effort)
        if rank == 0:
            report(rows, arguments.output)
        comm.check()
        comm.close()


def report(rows: list, output: Path | None) -> None:
    """The best shape and the library's own for every size; all rows into ``output``."""
    if output is not None:
        output.write_text(json.dumps([asdict(row) for row in rows], indent=0))
    for size in sorted({row.bytes for row in rows}):
        here = sorted((row for row in rows if row.bytes == size), key=lambda row: row.median_us)
        own = next(row for row in here if row.algorithm == "backend")
        best = [row for row in here if row is not own][:4]
        named = " · ".join(f"{row.algorithm} {row.median_us:.2f}" for row in best)
        wrong = sum(row.wrong for row in here)
        print(f"{size_text(size):>6} backend {own.median_us:.2f} | {named} | wrong {wrong}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--transport", default="peer")
    parser.add_argument("--lanes", type=int, default=4, help="of the TCP transport")
    parser.add_argument("--sizes", default="1K:64M")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="a size, at most")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        measure(arguments)
    else:
        run_ranks(sys.argv, Launch(ranks_per_node=arguments.ranks))


if __name__ == "__main__":
    main()
