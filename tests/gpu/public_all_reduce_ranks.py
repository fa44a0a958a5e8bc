"""One rank of the tests of ``weft.all_reduce`` on GPUs: ``torchrun … CASE``, one JSON line a rank.

Only public functions of weft are called, in groups that torch.distributed made.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
import threading
import time

import torch
import torch.distributed as dist

import weft
from weft.errors import CommunicationError, EnvironmentUnavailable, WeftError

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
COUNTS = (1, 3, 7, 8, 1009, 4096, 65_537, 262_144, 1_000_003)


def inputs(seed: int, count: int, dtype: torch.dtype, ranks: int) -> list[torch.Tensor]:
    """One random tensor a rank; every rank can make them all."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return [torch.randn(count, generator=generator, device="cuda").to(dtype) for _ in range(ranks)]


def reference(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([part.double() for part in parts]).sum(0)


def near(result: torch.Tensor, parts: list[torch.Tensor]) -> bool:
    """Within the rounding that adding in any order may cost."""
    magnitude = torch.stack([part.double().abs() for part in parts]).sum(0)
    bound = magnitude * torch.finfo(result.dtype).eps * len(parts)
    return bool(((result.double() - reference(parts)).abs() <= bound).all())


def same_everywhere(tensor: torch.Tensor, group: dist.ProcessGroup | None = None) -> bool:
    """Bitwise equal on all ranks of the group."""
    bits = tensor.contiguous().view(torch.uint8)
    everywhere = [torch.empty_like(bits) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everywhere, bits, group=group)
    return all(torch.equal(bits, other) for other in everywhere)


def runs_weft(group: dist.ProcessGroup | None = None) -> bool:
    """Whether this group runs weft's kernels: a named one is refused elsewhere."""
    try:
        weft.all_reduce(torch.ones(8, device="cuda"), group, "one_shot")
    except EnvironmentUnavailable:
        return False
    return True


def case_values() -> list[str]:
    """Every size and type, in place and with out=, against fp64, NCCL and the other ranks."""
    rank, size = dist.get_rank(), dist.get_world_size()
    problems = [] if runs_weft() else ["the kernels are not used here"]
    for count in COUNTS:
        for dtype in DTYPES:
            parts = inputs(count, count, dtype, size)
            mine, label = parts[rank].clone(), f"{count} {dtype}"
            by_nccl = mine.clone()
            dist.all_reduce(by_nccl)
            out = torch.empty_like(mine)
            if weft.all_reduce(mine, out=out) is not out or not torch.equal(mine, parts[rank]):
                problems.append(f"{label}: out=")
            if weft.all_reduce(mine) is not mine or not torch.equal(mine, out):
                problems.append(f"{label}: in place differs")
            if not (near(mine, parts) and near(by_nccl, parts)):
                problems.append(f"{label}: values")
            if not same_everywhere(mine):
                problems.append(f"{label}: ranks differ")
            for name in ("one_shot", "two_shot", "library"):
                again = weft.all_reduce(parts[rank].clone(), algorithm=name)
                if not near(again, parts) or (name != "library" and not torch.equal(again, mine)):
                    problems.append(f"{label}: {name}")
    return problems


def case_fallbacks() -> list[str]:
    """Types, strides and sizes that the kernels do not take go to the library."""
    rank, size = dist.get_rank(), dist.get_world_size()
    problems = []
    for dtype in (torch.float64, torch.int32, torch.int64):
        value = torch.full((33,), rank + 1, device="cuda", dtype=dtype)
        if not bool((weft.all_reduce(value) == size * (size + 1) // 2).all()):
            problems.append(str(dtype))
    parts = inputs(1, 64, torch.float32, size)
    strided = parts[rank].clone().view(8, 8).t()
    weft.all_reduce(strided)
    if not near(strided.t().reshape(-1), parts):
        problems.append("strides")
    large = inputs(2, 40 << 20, torch.bfloat16, size)
    if not near(weft.all_reduce(large[rank].clone()), large):
        problems.append("80 MiB")
    if weft.all_reduce(torch.empty(0, device="cuda")).numel():
        problems.append("empty")
    return problems


def case_fused() -> list[str]:
    """Rows that the kernel takes and rows that it does not, against the separate operations."""
    rank, size = dist.get_rank(), dist.get_world_size()
    problems = []
    for dtype in DTYPES:
        for rows, hidden in ((1, 4096), (7, 2880), (64, 4096), (600, 4096), (5, 33), (3, 8192)):
            parts = inputs(rows + hidden, rows * hidden, dtype, size)
            mine = parts[rank].view(rows, hidden).clone()
            start = inputs(1, rows * hidden, dtype, 1)[0].view(rows, hidden)
            weight = inputs(2, hidden, dtype, 1)[0]
            total = weft.all_reduce(mine.clone())
            residual, out = start.clone(), torch.empty_like(mine)
            normed = weft.all_reduce_residual_rms_norm(mine, residual, weight, 1e-5, out=out)
            label, unit = f"{rows} x {hidden} {dtype}", 4 * torch.finfo(dtype).eps
            added = start + total
            want = torch.nn.functional.rms_norm(added.float(), (hidden,), weight.float(), 1e-5)
            if normed is not out or not torch.equal(mine, parts[rank].view(rows, hidden)):
                problems.append(f"{label}: out= or the input")
            if not torch.equal(residual, added):
                problems.append(f"{label}: residual")
            if not torch.allclose(normed.float(), want, unit, unit):
                problems.append(f"{label}: norm")
            if not (same_everywhere(normed) and same_everywhere(residual)):
                problems.append(f"{label}: ranks differ")
    return problems


def case_graph() -> list[str]:
    """Captured, replayed often, one rank late."""
    rank, size = dist.get_rank(), dist.get_world_size()
    source = torch.empty(4, 4096, device="cuda", dtype=torch.bfloat16)
    residual, weight = torch.zeros_like(source), torch.ones_like(source[0])
    total, normed = torch.empty_like(source), torch.empty_like(source)

    def step() -> None:
        weft.all_reduce(source, out=total)
        weft.all_reduce_residual_rms_norm(source, residual, weight, 1e-5, out=normed)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    problems = []
    for turn in range(200):
        parts = inputs(turn, source.numel(), source.dtype, size)
        source.copy_(parts[rank].view_as(source))
        residual.zero_()
        if turn % 20 == rank:
            time.sleep(0.01)
        graph.replay()
        if not near(total.view(-1), parts) or not torch.equal(total, residual):
            problems.append(f"replay {turn}")
    return problems


def case_compile() -> list[str]:
    """One graph without a break, with the default backend, for two groups."""
    rank, size = dist.get_rank(), dist.get_world_size()
    other = dist.new_group(list(range(size)))

    def step(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = weft.all_reduce(x * 2)
        z = weft.all_reduce_residual_rms_norm(y / 8, residual, weight, 1e-5)
        return weft.all_reduce(z, other, algorithm="two_shot") + 1

    parts = inputs(3, 4 * 512, torch.float32, size)
    x, weight = parts[rank].view(4, 512), inputs(4, 512, torch.float32, 1)[0]
    one, two = torch.ones_like(x), torch.ones_like(x)
    want = step(x, one, weight)
    got = torch.compile(step, fullgraph=True)(x, two, weight)
    fine = torch.allclose(want, got, 1e-5, 1e-5) and torch.allclose(one, two, 1e-5, 1e-5)
    return [] if fine and not torch.equal(one, torch.ones_like(x)) else ["compiled differs"]


def case_groups() -> list[str]:
    """The world and overlapping subgroups, interleaved, also on two streams at once."""
    rank, size = dist.get_rank(), dist.get_world_size()
    members = [
        tuple(range(size)),
        tuple(range(size // 2)),
        tuple(range(size // 2, size)),
        (0, size - 1),
    ]
    groups = [None, *(dist.new_group(list(ranks)) for ranks in members[1:])]
    streams, problems = [torch.cuda.Stream(), torch.cuda.Stream()], []
    for turn in range(30):
        results = []
        for index, (ranks, group) in enumerate(zip(members, groups, strict=True)):
            if rank not in ranks:
                continue
            with torch.cuda.stream(streams[index % 2] if turn else torch.cuda.current_stream()):
                parts = inputs(100 * turn + index, 5000 + turn, torch.bfloat16, size)
                mine = weft.all_reduce(parts[rank].clone(), group)
                results.append((mine, [parts[r] for r in ranks]))
        torch.cuda.synchronize()
        problems += [f"turn {turn}" for mine, parts in results if not near(mine, parts)]
    return problems


def message(action: object) -> str:
    try:
        action()  # type: ignore[operator]
    except WeftError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def case_bad() -> list[str]:
    """One clear error on every rank, and the group works on."""
    size = dist.get_world_size()
    x = torch.ones(64, device="cuda")
    weft.all_reduce(x)
    closed = dist.new_group(list(range(size)))
    weft.all_reduce(x, closed)
    dist.destroy_process_group(closed)
    said = {
        "UserError: all_reduce: the tensor is on cpu": lambda: weft.all_reduce(torch.ones(4)),
        "UserError: all_reduce: the process group is closed": lambda: weft.all_reduce(x, closed),
        "UnknownAlgorithmError: algorithm 'fastest'": lambda: weft.all_reduce(x, None, "fastest"),
        "EnvironmentUnavailable: algorithm ring": lambda: weft.all_reduce(x, None, "ring"),
        "UserError: out is": lambda: weft.all_reduce(x, out=torch.ones(3, device="cuda")),
    }
    problems = []
    for expected, action in said.items():
        found = message(action)
        if not found.startswith(expected):
            problems.append(f"{expected} -> {found}")
    if not bool((weft.all_reduce(torch.ones(8, device="cuda")) == size).all()):
        problems.append("the group does not work on")
    return problems


def case_threads() -> list[str]:
    """Two threads on one group: some call says so, and nobody hangs."""
    weft.all_reduce(torch.ones(8, device="cuda"))
    found: list[str] = []
    stop = threading.Event()

    def hammer() -> None:
        torch.cuda.set_device(dist.get_rank())
        x = torch.ones(8, device="cuda")
        while not stop.is_set() and len(found) < 1:
            try:
                weft.all_reduce(x)
            except CommunicationError as error:
                found.append(str(error))
                stop.set()

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(5)
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    alive = [thread for thread in threads if thread.is_alive()]
    return [] if found and not alive else [f"errors {found}, threads alive {len(alive)}"]


def main() -> None:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", timeout=dt.timedelta(seconds=90))
    problems = globals()[f"case_{sys.argv[1]}"]()
    print(json.dumps({"rank": dist.get_rank(), "problems": problems[:5]}), flush=True)
    if sys.argv[1] == "threads":
        os._exit(0)  # calls of the ranks no longer match
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
