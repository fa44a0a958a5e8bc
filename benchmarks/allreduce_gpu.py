"""All-reduce on the GPUs of this machine beside its peers, all in one run.

    python benchmarks/allreduce_gpu.py --ranks 4 --sections tune auto peers fused eager \
        --out benchmarks/results/allreduce.json

Starts one process a GPU. Results are written after every measurement, so a section that
fails or runs out of its time loses nothing that was measured before.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from weft.kernels.selection import HIERARCHICAL, Variant

KIB = 1024
SIZES = [KIB << step for step in range(17)]  # 1 KiB to 64 MiB
SECTIONS = ["tune", "auto", "peers", "fused", "eager", "hierarchy", "tcp", "symmetric"]
SMALL = [size for size in SIZES if size <= 4096 * KIB]


def launch(arguments: argparse.Namespace) -> int:
    """Start the ranks, wait within the bound, end what is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        "WORLD_SIZE": str(arguments.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *sys.argv]
    ranks = [
        subprocess.Popen(command, env={**environment, **of_rank(arguments, rank)})
        for rank in range(arguments.ranks)
    ]
    end = time.monotonic() + arguments.timeout
    try:
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
            if any(rank.poll() not in (None, 0) for rank in ranks):
                end = min(end, time.monotonic() + 5)
            time.sleep(0.1)
    finally:
        for rank in ranks:
            rank.kill()
    return max(abs(rank.wait()) for rank in ranks)


def of_rank(arguments: argparse.Namespace, rank: int) -> dict[str, str]:
    """What differs from rank to rank; NCCL takes another NCCL_HOSTID for another host."""
    if arguments.fake_hosts < 2:
        return {"RANK": str(rank)}
    host = rank // (arguments.ranks // arguments.fake_hosts)
    return {"RANK": str(rank), "NCCL_HOSTID": f"node{host}", "NCCL_SOCKET_IFNAME": "lo"}


class Run:
    """One rank of the benchmark: its groups, its results file."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch
        import torch.distributed as dist

        from timing import machine

        self.rank = int(os.environ["RANK"])
        torch.cuda.set_device(self.rank)
        dist.init_process_group(
            "nccl",
            timeout=dt.timedelta(seconds=60),
            device_id=torch.device("cuda", self.rank),
        )
        self.path = Path(arguments.out)
        self.budget_s = arguments.budget
        self.results: dict = {
            "machine": machine(arguments.commit),
            "command": " ".join(sys.argv),
            "rows": [],
        }

    def record(self, **row: object) -> None:
        self.results["rows"].append(row)
        if self.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.results, indent=0))


class Group:
    """Ranks 0..n-1: a GPU group with its own NCCL communicator, and a gloo group beside it."""

    def __init__(self, run: Run, num_ranks: int) -> None:
        import torch.distributed as dist

        members = list(range(num_ranks))
        self.gpu = dist.new_group(members)
        self.cpu = dist.new_group(members, backend="gloo", timeout=dt.timedelta(seconds=30))
        self.num_ranks = num_ranks
        self.inside = run.rank < num_ranks


def within(run: Run, group: Group, sizes: list[int]) -> Iterator[int]:
    """Sizes until the section's time is used up, decided by all ranks together."""
    from timing import worst

    start = time.monotonic()
    for size in sizes:
        if worst(time.monotonic() - start, group.cpu) > run.budget_s:
            return
        yield size


def section_peers(run: Run, group: Group) -> None:
    """NCCL, torch's one-shot and two-shot."""
    import torch
    import torch.distributed as dist
    import torch.distributed._symmetric_memory as symm_mem

    from timing import graph_us

    most = SIZES[-1] // 2
    plain = torch.randn(most, device="cuda").bfloat16()
    shared = symm_mem.empty(most, dtype=torch.bfloat16, device="cuda")
    symm_mem.rendezvous(shared, group.gpu)
    name = group.gpu.group_name
    for size in within(run, group, SIZES):
        count = size // 2
        calls: dict[str, Callable[[], object]] = {
            "nccl": lambda n=count: dist.all_reduce(plain[:n], group=group.gpu)
        }
        view = shared[:count]
        calls["torch_one_shot"] = lambda v=view: torch.ops.symm_mem.one_shot_all_reduce(
            v, "sum", name
        )
        calls["torch_two_shot"] = lambda v=view: torch.ops.symm_mem.two_shot_all_reduce_(
            v, "sum", name
        )
        for key, call in calls.items():
            if key == "torch_one_shot" and size > 4 << 20:
                continue
            us = graph_us(call, group.cpu, num_calls(size))
            run.record(ranks=group.num_ranks, bytes=size, implementation=key, us=us)


def section_symmetric(run: Run, group: Group) -> None:
    """NCCL on buffers registered as symmetric."""
    import torch
    import torch.distributed as dist

    from timing import graph_us

    backend = group.gpu._get_backend(torch.device("cuda"))  # noqa: SLF001  torch's own recipe
    dist.all_reduce(torch.ones(8, device="cuda"), group=group.gpu)
    pool = torch.cuda.MemPool(backend.mem_allocator)
    with torch.cuda.use_mem_pool(pool):
        tensor = torch.randn(SIZES[-1] // 2, device="cuda", dtype=torch.bfloat16)
    backend.register_mem_pool(pool, symm=True)
    for size in within(run, group, SIZES):
        us = graph_us(
            lambda n=size // 2: dist.all_reduce(tensor[:n], group=group.gpu),
            group.cpu,
            num_calls(size),
        )
        run.record(ranks=group.num_ranks, bytes=size, implementation="nccl_symmetric", us=us)


def num_calls(size: int) -> int:
    """Calls in a graph: fewer where one takes long."""
    return 40 if size <= 1 << 20 else 12 if size <= 8 << 20 else 4


def variants(num_ranks: int, size: int) -> Iterator[Variant]:
    """What the tuner tries for a size."""
    for algorithm in ("one_shot", "two_shot"):
        ranks_sharing = num_ranks if algorithm == "two_shot" else 1
        if algorithm == "one_shot" and num_ranks > 2 and size > 512 * KIB:
            continue
        if algorithm == "two_shot" and size < 128 * KIB:
            continue
        for threads, most in itertools.product((64, 128, 256, 512, 1024), (64, 132, 264, 400)):
            variant = Variant(algorithm=algorithm, threads=threads, max_blocks=most)
            blocks = variant.blocks(size, ranks_sharing)
            turns = size // 16 // ranks_sharing // threads / blocks
            if turns <= (1 if size <= 1 << 20 else 10) and (blocks > most // 2 or most == 64):
                yield variant


def section_tune(run: Run, group: Group) -> None:
    """Every variant of weft's kernels at every size."""
    import torch

    from timing import graph_us
    from weft.kernels.communicator import DeviceAllReduce

    comm = DeviceAllReduce(group.gpu, max_bytes=64 << 20, timeout_s=10)
    tensor = torch.randn(SIZES[-1] // 2, device="cuda").bfloat16()
    out = torch.empty_like(tensor)
    for size in within(run, group, SIZES):
        count = size // 2
        for variant in variants(group.num_ranks, size):
            comm.use_variant(variant, tensor.dtype, count)
            us = graph_us(
                lambda n=count: comm.all_reduce(tensor[:n], out[:n]), group.cpu, num_calls(size)
            )
            run.record(
                ranks=group.num_ranks,
                bytes=size,
                implementation="weft",
                variant=f"{variant.algorithm} {variant.threads}x{variant.max_blocks}",
                us=us,
            )
        comm.check()
    comm.close()


def section_auto(run: Run, group: Group) -> None:
    """What weft chooses by itself, with and without overlapped launches."""
    import torch

    from timing import graph_us
    from weft.kernels.communicator import DeviceAllReduce

    tensor = torch.randn(SIZES[-1] // 2, device="cuda").bfloat16()
    out = torch.empty_like(tensor)
    for overlap in (True, False):
        comm = DeviceAllReduce(group.gpu, timeout_s=10, overlap=overlap)
        name = "weft_auto" if overlap else "weft_auto_no_overlap"
        for size in within(run, group, SIZES):
            us = graph_us(
                lambda n=size // 2, c=comm: c.all_reduce(tensor[:n], out[:n]),
                group.cpu,
                num_calls(size),
            )
            run.record(ranks=group.num_ranks, bytes=size, implementation=name, us=us)
        comm.close()


def section_fused(run: Run, group: Group) -> None:
    """All-reduce + residual + RMSNorm in one kernel, beside the plain all-reduce."""
    import torch

    from timing import graph_us
    from weft.kernels import residual_rms_norm
    from weft.kernels.communicator import DeviceAllReduce

    chosen = residual_rms_norm.shape
    with DeviceAllReduce(group.gpu, timeout_s=10) as comm:
        for hidden, rows in itertools.product((4096, 8192), (1, 2, 4, 8, 16, 32, 64, 128)):
            weight = torch.randn(hidden, device="cuda").bfloat16()
            tensor = torch.randn(rows, hidden, device="cuda").bfloat16()
            residual, out = torch.zeros_like(tensor), torch.empty_like(tensor)

            def fused(t=tensor, r=residual, o=out, w=weight) -> None:
                comm.all_reduce_residual_rms_norm(t, r, w, 1e-5, o)

            def plain(t=tensor, o=out) -> None:
                comm.all_reduce(t, o)

            row = {"ranks": group.num_ranks, "bytes": tensor.nbytes, "hidden": hidden}
            run.record(**row, implementation="weft_plain", us=graph_us(plain, group.cpu))
            run.record(**row, implementation="weft_fused_norm", us=graph_us(fused, group.cpu))
            for cluster in (1, 2, 4, 8):
                threads = hidden // 8 // cluster
                residual_rms_norm.shape = lambda _v, _r, c=cluster, t=threads: (c, t)
                us = graph_us(fused, group.cpu)
                run.record(**row, implementation=f"weft_fused_cluster_{cluster}", us=us)
            residual_rms_norm.shape = chosen


def section_hierarchy(run: Run, group: Group) -> None:
    """Virtual nodes over peer memory, beside the flat kernels."""
    import torch

    from timing import graph_us
    from weft.kernels.communicator import DeviceAllReduce

    tensor = torch.randn(SMALL[-1] // 2, device="cuda").bfloat16()
    out = torch.empty_like(tensor)
    for nodes in {2, group.num_ranks}:
        with DeviceAllReduce(group.gpu, max_bytes=SMALL[-1], nodes=nodes, timeout_s=10) as comm:
            for size, name in itertools.product(
                within(run, group, SMALL[3:]), ("two_shot", *HIERARCHICAL)
            ):
                for threads in (64, 128, 256, 512):
                    variant = Variant(algorithm=name, threads=threads)
                    comm.use_variant(variant, tensor.dtype, size // 2)
                    us = graph_us(
                        lambda n=size // 2, c=comm: c.all_reduce(tensor[:n], out[:n]), group.cpu
                    )
                    label = f"{name} {group.num_ranks // nodes}x{nodes}"
                    run.record(
                        ranks=group.num_ranks,
                        bytes=size,
                        implementation=label,
                        threads=threads,
                        us=us,
                    )


def section_tcp(run: Run, group: Group) -> None:
    """Two nodes over TCP through the host proxies."""
    import torch

    from timing import graph_us
    from weft.kernels import host_link
    from weft.kernels.communicator import DeviceAllReduce

    tensor = torch.randn(SMALL[-1] // 2, device="cuda").bfloat16()
    out = torch.empty_like(tensor)
    for lanes in (1, 2, 4):
        host_link.LANES = lanes
        with DeviceAllReduce(
            group.gpu, max_bytes=4 << 20, nodes=2, transport="tcp", timeout_s=10
        ) as comm:
            for size, threads in itertools.product(
                within(run, group, [s for s in SMALL if s >= 8 * KIB]), (128, 256, 512)
            ):
                comm.use_variant(
                    Variant(algorithm="hierarchical_host", threads=threads), tensor.dtype, size // 2
                )
                us = graph_us(
                    lambda n=size // 2, c=comm: c.all_reduce(tensor[:n], out[:n]), group.cpu, 10
                )
                label = f"weft_tcp_lanes_{lanes}"
                run.record(
                    ranks=group.num_ranks,
                    bytes=size,
                    implementation=label,
                    threads=threads,
                    us=us,
                )
            comm.check()


def section_nccl_tcp(run: Run, group: Group) -> None:
    """NCCL between two fake hosts; start with --fake-hosts 2."""
    import torch
    import torch.distributed as dist

    from timing import graph_us

    tensor = torch.randn(SMALL[-1] // 2, device="cuda").bfloat16()
    for size in within(run, group, [s for s in SMALL if s >= 8 * KIB]):
        us = graph_us(
            lambda n=size // 2: dist.all_reduce(tensor[:n], group=group.gpu), group.cpu, 10
        )
        run.record(ranks=group.num_ranks, bytes=size, implementation="nccl_tcp", us=us)


def section_eager(run: Run, group: Group) -> None:
    """Calls launched one by one from Python."""
    import torch
    import torch.distributed as dist

    from timing import eager_us
    from weft.kernels import ops  # noqa: F401  registers the operator
    from weft.kernels.communicator import DeviceAllReduce

    with DeviceAllReduce(group.gpu, timeout_s=10) as comm:
        operator = torch.ops.weft.device_all_reduce_
        for size in (8 * KIB, 128 * KIB, 1024 * KIB):
            tensor = torch.zeros(size // 2, device="cuda").bfloat16()
            for name, call in (
                ("nccl", lambda t=tensor: dist.all_reduce(t, group=group.gpu)),
                ("weft_auto", lambda t=tensor: comm.all_reduce(t)),
                ("weft_operator", lambda t=tensor: operator(t, comm.handle)),
            ):
                us = eager_us(call, group.cpu)
                run.record(
                    ranks=group.num_ranks, bytes=size, implementation=name, mode="eager", us=us
                )


def table(rows: list[dict], ranks: int) -> str:
    """Best µs an implementation and size."""
    names: dict[str, dict[int, tuple[float, str]]] = {}
    for row in rows:
        if row.get("ranks") != ranks or "us" not in row or row.get("mode") == "eager":
            continue
        key = row["implementation"] + (f" {row['hidden']}" if "hidden" in row else "")
        best = names.setdefault(key, {})
        if row["bytes"] not in best or row["us"] < best[row["bytes"]][0]:
            best[row["bytes"]] = (row["us"], row.get("variant", ""))
    sizes = sorted({size for best in names.values() for size in best})
    lines = [f"{ranks} GPUs, us: {' | '.join(names)} | best variant"]
    for size in sizes:
        cells = [f"{best[size][0]:8.2f}" if size in best else "       -" for best in names.values()]
        chosen = names.get("weft", {}).get(size, (0, ""))[1]
        lines.append(f"{size // KIB:6d} KiB {' '.join(cells)}  {chosen}")
    return "\n".join(lines)


def work(arguments: argparse.Namespace) -> None:
    """One rank: every section for every group size, errors kept in the results."""
    run = Run(arguments)
    for num_ranks in arguments.groups:
        group = Group(run, num_ranks)
        for section in arguments.sections:
            if group.inside:
                start = time.monotonic()
                try:
                    globals()[f"section_{section}"](run, group)
                except Exception:  # noqa: BLE001  the other sections go on
                    trace = traceback.format_exc()
                    print(f"rank {run.rank} section {section}: {trace[-1500:]}", flush=True)
                    run.record(ranks=num_ranks, section=section, error=trace[-500:])
                run.record(section=section, ranks=num_ranks, took_s=time.monotonic() - start)
        if run.rank == 0:
            print(table(run.results["rows"], num_ranks), flush=True)
    if run.rank == 0:
        for row in run.results["rows"]:
            if row.get("mode") == "eager" or "took_s" in row:
                print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()})
    sys.stdout.flush()
    os._exit(0)  # ranks outside the last group end earlier; nobody waits for the others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--groups", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--sections", nargs="+", default=SECTIONS)
    parser.add_argument("--budget", type=float, default=20, help="seconds a section and group")
    parser.add_argument("--timeout", type=float, default=240, help="seconds in all")
    parser.add_argument("--commit", default="unknown", help="what to write into the results")
    parser.add_argument("--fake-hosts", type=int, default=1, help="hosts that NCCL is to see")
    parser.add_argument("--out", default="allreduce.json")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        work(arguments)
    else:
        sys.exit(launch(arguments))


if __name__ == "__main__":
    main()
