"""One rank of the GPU all-reduce tests: ``allreduce_ranks.py CASE`` under RANK, WORLD_SIZE.

With fewer GPUs than ranks the ranks share GPUs (they then take turns, milliseconds a call).
Prints one JSON object on the last line of stdout.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from weft.errors import LostRankError, UserError
from weft.kernels import ops  # noqa: F401  registers the operators
from weft.kernels.communicator import DeviceAllReduce
from weft.kernels.driver import checked, driver
from weft.kernels.endpoint import ENTERED_OFFSET, EPOCH_OFFSET
from weft.kernels.selection import MAX_BLOCKS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@contextmanager
def opened(group: dist.ProcessGroup, **options: Any) -> Iterator[DeviceAllReduce]:
    """A communicator, closed by all ranks where the block ends well."""
    comm = DeviceAllReduce(group, **options)
    yield comm
    comm.close()


def set_epoch(comm: DeviceAllReduce, epoch: int) -> None:
    """Pretend that ``epoch`` calls (mod 2^32) have been made; on all ranks alike."""
    word = (epoch % 2**32).to_bytes(4, "little")
    own = comm._end.memory.addresses[comm.rank]
    for offset, count in ((EPOCH_OFFSET, MAX_BLOCKS), (ENTERED_OFFSET, 32)):
        data = word * count
        checked(driver().cuMemcpyHtoD(own + offset, data, len(data)), "writing")
    dist.barrier(comm.group)


def inputs(seed: int, count: int, dtype: torch.dtype, num_ranks: int) -> list[torch.Tensor]:
    """What every rank contributes: the same on all ranks for one seed."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    shape = (num_ranks, count)
    values = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32)
    if seed % 5 == 0:  # magnitudes that cancel: a wrong order of addition shows
        values *= 10.0 ** torch.randint(-3, 4, shape, generator=generator, device="cuda")
    return list(values.to(dtype))


def in_order(parts: list[torch.Tensor]) -> torch.Tensor:
    """fp32 in the given order, rounded once."""
    total = torch.zeros_like(parts[0], dtype=torch.float32)
    for part in parts:
        total += part.float()
    return total.to(parts[0].dtype)


def doubling(values: list[torch.Tensor]) -> torch.Tensor:
    """The tree of recursive doubling with fold-in, rounded after every addition."""
    paired = 1 << (len(values).bit_length() - 1)
    folded = [
        in_order([values[n], values[n + paired]]) if n + paired < len(values) else values[n]
        for n in range(paired)
    ]
    while len(folded) > 1:
        folded = [in_order(folded[n : n + 2]) for n in range(0, len(folded), 2)]
    return folded[0]


def expected(parts: list[torch.Tensor], algorithm: str = "auto", nodes: int = 1) -> torch.Tensor:
    """The defined result of an algorithm."""
    if not algorithm.startswith("hierarchical"):
        return in_order(parts)
    size = len(parts) // nodes
    sums = [in_order(parts[first : first + size]) for first in range(0, len(parts), size)]
    return doubling(sums) if algorithm == "hierarchical_doubling" else in_order(sums)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = torch.int32 if a.element_size() == 4 else torch.int16
    return torch.equal(a.view(kind), b.view(kind))


def close_to_fp64(result: torch.Tensor, parts: list[torch.Tensor]) -> bool:
    exact = torch.stack([p.double() for p in parts]).sum(0)
    scale = torch.stack([p.double().abs() for p in parts]).sum(0)
    roundings = 2 * torch.finfo(result.dtype).eps + len(parts) * torch.finfo(torch.float32).eps
    return bool(((result.double() - exact).abs() <= scale * roundings + 1e-7).all())


def a_size(rng: random.Random, most: int) -> int:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randint(1, 70)
    if kind == 1:
        return min(most, max(1, 2 ** rng.randint(0, 20) + rng.choice((-1, 0, 1))))
    if kind == 2:
        return rng.choice((1, 2, 3, 5, 7, 31, 127, 509, 1021, 4093, 8191, 65521, 131071))
    return rng.randint(1, most)


def random_case(comm: DeviceAllReduce, rng: random.Random, seed: int, most: int) -> str | None:
    """One random call; what is wrong with it, or None."""
    dtype = rng.choice(DTYPES)
    count = a_size(rng, most)
    algorithm = rng.choice(("auto", *comm.topology.algorithms))
    if algorithm == "one_shot":
        count = min(count, 1 << 20)
    in_place, shift = rng.random() < 0.5, rng.choice((0, 0, 0, 1, 3))
    parts = inputs(seed, count, dtype, comm.num_ranks)
    whole = torch.full((count + shift + 9,), 7.0, device="cuda", dtype=dtype)
    mine = whole[shift : shift + count]
    mine.copy_(parts[comm.rank])
    out = mine if in_place else torch.full_like(mine, 9.0)
    comm.all_reduce(mine, out, algorithm=algorithm)
    label = f"{count} x {dtype} {algorithm} in_place={in_place} shift={shift} seed={seed}"
    between = comm.topology.transport != "peer"
    want = expected(parts, "hierarchical_direct" if between else algorithm, comm.topology.nodes)
    if not same_bits(out, want):
        wrong = int((out != want).sum())
        return f"{label}: {wrong} wrong"
    if not close_to_fp64(out, parts):
        return f"{label}: off the fp64 sum"
    if not in_place and not same_bits(mine, parts[comm.rank]):
        return f"{label}: the input was changed"
    if bool((whole[shift + count :] != 7.0).any()) or bool((whole[:shift] != 7.0).any()):
        return f"{label}: wrote outside"
    return None


def case_random(
    group: dist.ProcessGroup,
    count: str,
    most: str,
    budget_s: str,
    nodes: str = "1",
    transport: str = "peer",
) -> dict:
    """COUNT random calls of up to MOST elements, or as many as fit in BUDGET_S."""
    rng, end = random.Random(int(count)), time.monotonic() + float(budget_s)
    problems, done = [], 0
    with opened(
        group, max_bytes=8 << 20, nodes=int(nodes), transport=transport, timeout_s=20
    ) as comm:
        for seed in range(int(count)):
            problem = random_case(comm, rng, seed, int(most))
            problems += [problem] if problem else []
            done += 1
            if seed % 50 == 49 and agreed(group, time.monotonic() > end):
                break
        torch.cuda.synchronize()
        comm.check()
    return {"cases": done, "problems": problems[:5], "ok": not problems}


def agreed(group: dist.ProcessGroup, mine: bool) -> bool:
    answers = [None] * dist.get_world_size(group)
    dist.all_gather_object(answers, mine, group=group)
    return any(answers)


def case_special(group: dist.ProcessGroup) -> dict:
    """NaN, infinities, signed zeros and the words that the protocol uses itself."""
    problems = []
    with opened(group, timeout_s=20) as comm:
        for dtype in DTYPES:
            words = torch.tensor([-1, 0x7FFFFFFF, -(2**31), 0, -65536, 65535], dtype=torch.int32)
            mine = words.repeat(1000).cuda().view(dtype)
            for algorithm in ("one_shot", "two_shot"):
                out = comm.all_reduce(mine, torch.empty_like(mine), algorithm=algorithm)
                want = expected([mine] * comm.num_ranks)
                if not torch.allclose(out.float(), want.float(), 0, 0, equal_nan=True):
                    problems.append(f"{dtype} {algorithm}")
        empty = torch.empty(0, device="cuda")
        comm.all_reduce(empty)
        torch.cuda.synchronize()
    return {"problems": problems, "ok": not problems}


def case_graph(
    group: dist.ProcessGroup,
    replays: str,
    delay_every: str,
    budget_s: str,
    nodes: str = "1",
    transport: str = "peer",
) -> dict:
    """Replays of a captured graph with changing inputs, one rank late now and then."""
    comm = DeviceAllReduce(
        group, max_bytes=1 << 20, nodes=int(nodes), transport=transport, timeout_s=20
    )
    sizes = (1, 4096, 5000, 65536, 300000)
    with torch.cuda.stream(torch.cuda.Stream()):
        tensors = [torch.zeros(n, device="cuda", dtype=torch.bfloat16) for n in sizes]
        outs = [torch.zeros_like(t) for t in tensors]
        for tensor, out in zip(tensors, outs, strict=True):
            comm.all_reduce(tensor, out)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        wrong = torch.zeros((), device="cuda", dtype=torch.int64)
        step = torch.zeros((), device="cuda")
        with torch.cuda.graph(graph):
            step += 1.0
            for tensor, out in zip(tensors, outs, strict=True):
                tensor.fill_(float(comm.rank + 1))
                tensor.mul_(step % 8)
                comm.all_reduce(tensor, out)
                comm.all_reduce(tensor)  # in place as well
                want = (step % 8) * sum(range(1, comm.num_ranks + 1))
                wrong += (out != want.to(out.dtype)).sum() + (tensor != out).sum()
        rng = random.Random(comm.rank)
        end, done = time.monotonic() + float(budget_s), 0
        while done < int(replays):
            for _ in range(min(500, int(replays))):
                if rng.randrange(int(delay_every)) == 0:
                    torch.cuda._sleep(rng.randint(1000, 400000))
                graph.replay()
            done += min(500, int(replays))
            torch.cuda.synchronize()
            comm.check()
            if agreed(group, time.monotonic() > end):
                break
        problems = int(wrong)
    comm.close()
    return {"replays": done, "calls": done * 2 * len(sizes), "wrong": problems, "ok": problems == 0}


def case_wrap(group: dist.ProcessGroup, nodes: str = "1", transport: str = "peer") -> dict:
    """Epochs around 2^32, all algorithms."""
    problems = []
    with opened(group, nodes=int(nodes), transport=transport, timeout_s=20) as comm:
        for start in (2**32 - 3, 2**31 - 3, 0):
            set_epoch(comm, start)
            rng = random.Random(start)
            for seed in range(8):
                problem = random_case(comm, rng, seed, 40000)
                problems += [problem] if problem else []
            torch.cuda.synchronize()
            comm.check()
    return {"problems": problems, "ok": not problems}


def case_cycles(
    group: dist.ProcessGroup,
    cycles: str,
    budget_s: str,
    nodes: str = "1",
    transport: str = "peer",
) -> dict:
    """Create, use, destroy; free memory must come back."""
    tensor = torch.ones(4096, device="cuda", dtype=torch.bfloat16)
    end, done, levels = time.monotonic() + float(budget_s), 0, []
    while done < int(cycles):
        comm = DeviceAllReduce(
            group, max_bytes=1 << 20, nodes=int(nodes), transport=transport, timeout_s=20
        )
        tensor.fill_(1.0)
        comm.all_reduce(tensor)
        assert bool((tensor == comm.num_ranks).all())
        comm.close()
        done += 1
        if done in (10, 50) or done % 100 == 0:
            dist.barrier(group)
            levels.append(torch.cuda.mem_get_info()[0])
            dist.barrier(group)
            if agreed(group, time.monotonic() > end):
                break
    drift = levels[0] - levels[-1] if levels else 0
    files = len(list(Path("/proc/self/fd").iterdir()))
    return {"cycles": done, "drift_bytes": drift, "files": files, "ok": drift <= 8 << 20}


def case_streams(group: dist.ProcessGroup) -> dict:
    """Two communicators on two streams at once, one communicator from two streams in turn."""
    problems = []
    first, second = DeviceAllReduce(group, timeout_s=20), DeviceAllReduce(group, timeout_s=20)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for turn in range(10):
        results = []
        for comm, stream in zip((first, second), streams, strict=True):
            with torch.cuda.stream(stream):
                parts = inputs(turn, 30000, torch.bfloat16, comm.num_ranks)
                results.append((comm.all_reduce(parts[comm.rank].clone()), parts))
        for stream in reversed(streams):
            with torch.cuda.stream(stream):
                parts = inputs(turn + 100, 3000, torch.float16, first.num_ranks)
                results.append((first.all_reduce(parts[first.rank].clone()), parts))
        torch.cuda.synchronize()
        problems += [
            f"turn {turn}" for out, parts in results if not same_bits(out, expected(parts))
        ]
    first.close()
    second.close()
    return {"problems": problems, "ok": not problems}


def norm_reference(
    total: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    residual = (residual.float() + total.float()).to(total.dtype)
    value = residual.float()
    scaled = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + epsilon)
    return residual, (weight.float() * scaled.to(total.dtype).float()).to(total.dtype)


FUSED_SHAPES = (
    (1, 4096),
    (3, 64),
    (16, 4096),
    (5, 2880),
    (200, 2048),
    (1, 8192),
    (40, 8192),
    (400, 4096),
)


def case_fused(group: dist.ProcessGroup) -> dict:
    """All-reduce + residual + RMSNorm against the separate operations."""
    problems = []
    with opened(group, timeout_s=20) as comm:
        for dtype in DTYPES:
            for rows, hidden in FUSED_SHAPES:
                parts = inputs(rows + hidden, rows * hidden, dtype, comm.num_ranks)
                mine = parts[comm.rank].view(rows, hidden).clone()
                residual = inputs(1, rows * hidden, dtype, 1)[0].view(rows, hidden).clone()
                weight = inputs(2, hidden, dtype, 1)[0]
                total = expected(parts).view(rows, hidden)
                want_residual, want = norm_reference(total, residual, weight, 1e-5)
                kept = mine.clone()
                kept_residual, aside = residual.clone(), torch.empty_like(residual)
                norm = comm.all_reduce_residual_rms_norm(
                    mine, residual, weight, 1e-5, residual_out=aside
                )
                out = torch.ops.weft.all_reduce_residual_rms_norm(
                    mine, residual, weight, 1e-5, comm.handle
                )
                label = f"{rows}x{hidden} {dtype}"
                if not (same_bits(aside, residual) and same_bits(norm, out)):
                    problems.append(f"{label}: a residual beside differs from one in place")
                if same_bits(kept_residual, residual):
                    problems.append(f"{label}: the residual was not changed")
                if not same_bits(residual, want_residual):
                    problems.append(f"{label}: residual")
                unit = torch.finfo(dtype).eps
                if not torch.allclose(out.float(), want.float(), 4 * unit, 4 * unit):
                    problems.append(f"{label}: norm {(out.float() - want.float()).abs().max()}")
                if not same_bits(mine, kept):
                    problems.append(f"{label}: the input was changed")
                everywhere = [torch.empty_like(out).cpu() for _ in range(comm.num_ranks)]
                dist.all_gather(everywhere, out.cpu(), group=cpu_group())
                if not all(same_bits(out.cpu(), other) for other in everywhere):
                    problems.append(f"{label}: ranks differ")
    return {"problems": problems, "ok": not problems}


def cpu_group() -> dist.ProcessGroup:
    return CPU[0]


CPU: list[dist.ProcessGroup] = []


def case_compile(group: dist.ProcessGroup) -> dict:
    """The operators under torch.compile (no graph break) and opcheck's schema test."""
    with opened(group, timeout_s=60) as comm:
        handle = comm.handle

        def step(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            y = torch.ops.weft.all_reduce(x * 2, handle, "auto")
            z = torch.ops.weft.all_reduce_residual_rms_norm(y, residual, weight, 1e-5, handle)
            w = z * 3
            torch.ops.weft.all_reduce_(w, handle, "auto")
            return w + 1

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        parts = inputs(3, 4 * 512, torch.bfloat16, comm.num_ranks)
        weight = inputs(4, 512, torch.bfloat16, 1)[0]
        x = parts[comm.rank].view(4, 512)
        one, two = torch.ones_like(x), torch.ones_like(x)
        want, got = step(x, one, weight), compiled(x, two, weight)
        ok = same_bits(want, got) and same_bits(one, two) and not same_bits(one, torch.ones_like(x))
        torch.cuda.synchronize()
    return {"ok": ok}


def case_lost(
    group: dist.ProcessGroup, timeout_s: str, nodes: str = "1", transport: str = "peer"
) -> dict:
    """The last rank dies without a word; all others must say so and the next calls fail fast."""
    comm = DeviceAllReduce(
        group, nodes=int(nodes), transport=transport, max_bytes=1 << 20, timeout_s=float(timeout_s)
    )
    tensor = torch.ones(70000, device="cuda", dtype=torch.bfloat16)
    comm.all_reduce(tensor)
    torch.cuda.synchronize()
    if comm.rank == comm.num_ranks - 1:
        print(json.dumps({"ok": True, "killed": True}), flush=True)
        os.kill(os.getpid(), 9)
    start = time.monotonic()
    before = tensor.clone()
    comm.all_reduce(tensor)
    torch.cuda.synchronize()
    waited = time.monotonic() - start
    messages = []
    for attempt in (comm.check, lambda: comm.all_reduce(tensor)):
        try:
            attempt()
        except LostRankError as error:
            messages.append(str(error))
    named = all(f"rank {comm.num_ranks - 1} did not come" in m for m in messages)
    stale = not same_bits(before, tensor)
    comm.close()
    ok = len(messages) == 2 and named and not stale and waited < float(timeout_s) + 3
    return {"ok": ok, "waited_s": round(waited, 2), "messages": messages, "stale": stale}


def case_late(group: dist.ProcessGroup) -> dict:
    """A rank that comes after the bound: every rank fails, a new communicator works."""
    comm = DeviceAllReduce(group, timeout_s=1.0)
    tensor = torch.ones(5000, device="cuda", dtype=torch.bfloat16)
    comm.all_reduce(tensor)
    torch.cuda.synchronize()
    if comm.rank == 0:
        time.sleep(3.0)
    comm.all_reduce(tensor)
    torch.cuda.synchronize()
    try:
        comm.check()
        message = ""
    except LostRankError as error:
        message = str(error)
    comm.close()
    dist.barrier(group)
    with opened(group, timeout_s=20) as again:
        tensor.fill_(1.0)
        again.all_reduce(tensor)
        fine = bool((tensor == again.num_ranks).all())
    return {"ok": fine and "rank 0" in message, "message": message}


def case_refused(group: dist.ProcessGroup) -> dict:
    """What cannot be is one UserError each, and the communicator lives on; the rest falls back."""
    messages = []
    with opened(group, timeout_s=20) as comm:
        good = torch.ones(64, device="cuda")
        attempts = (
            lambda: comm.all_reduce(torch.ones(4)),
            lambda: comm.all_reduce(good, torch.ones(65, device="cuda")),
            lambda: comm.all_reduce(good, algorithm="fastest"),
        )
        for attempt in attempts:
            try:
                attempt()
            except UserError as error:
                messages.append(str(error))
        fine = bool((comm.all_reduce(good) == comm.num_ranks).all())
        for odd in (
            torch.ones(4, device="cuda", dtype=torch.float64),
            torch.ones(8, 8).cuda().t()[1:3],
        ):
            fine = fine and bool((comm.all_reduce(odd) == comm.num_ranks).all())
    return {"ok": fine and len(messages) == len(attempts), "messages": messages}


def main(cases: Mapping[str, Any]) -> None:
    """Run the case that the command line names."""
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=dt.timedelta(seconds=60))
    CPU.append(dist.group.WORLD)
    torch.cuda.memory._set_allocator_settings("expandable_segments:False")
    result = cases[f"case_{sys.argv[1]}"](dist.group.WORLD, *sys.argv[2:])
    print(json.dumps({"rank": rank, "num_ranks": num_ranks, **result}), flush=True)
    if sys.argv[1] == "lost":
        os._exit(0)  # the group has lost a rank; its destructor would wait
    dist.destroy_process_group()


if __name__ == "__main__":
    main(globals())
