"""One rank of the all-reduce tests: ``allreduce_worker.py SCENARIO RANK SIZE STORE OUTPUT``."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

import weft
from allreduce_reference import all_reduce_reference
from exchange_reference import Exchange
from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.program import Topology
from weft.comm.program_reducer import ProgramReducer
from weft.comm.program_runner import DTYPES
from weft.errors import WeftError
from weft.kernels.reducer import Reducer

SIZES = (0, 1, 2, 3, 7, 64, 1009, 4096)
BIG = 1_300_001


def inputs(size, count, dtype, seed):
    """One tensor a rank, the same on every rank that asks."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return [torch.randn(count, generator=generator).to(dtype) for _ in range(size)]
    return [torch.randint(-99, 99, (count,), generator=generator).to(dtype) for _ in range(size)]


def stored(tensor):
    return (
        tensor.view(torch.int16).numpy().view(np.uint16)
        if tensor.dtype == torch.bfloat16
        else tensor.numpy()
    )


def opened(timeout_s=60, **options):
    return ProgramReducer(dist.group.WORLD, timeout_s=timeout_s, **options)


def check(reducer, algorithm, topology, rank, count, dtype, seed):
    tensors = inputs(topology.ranks, count, dtype, seed)
    name = str(dtype).removeprefix("torch.")
    expected = all_reduce_reference(algorithm, topology, [stored(t) for t in tensors], name)[rank]
    result = reducer.all_reduce(tensors[rank].clone(), algorithm=algorithm)
    assert stored(result).tobytes() == expected.tobytes(), (algorithm, topology, count, dtype)


def correct(rank, size):
    calls = 0
    for nodes in (n for n in range(1, size + 1) if size % n == 0):
        topology = Topology(nodes=nodes, gpus_per_node=size // nodes)
        reducer = opened(num_nodes=nodes)
        for algorithm in PROGRAMS:
            for count in SIZES:
                dtype = DTYPES[(calls + count) % len(DTYPES)]
                check(reducer, algorithm, topology, rank, count, dtype, calls)
                calls += 1
        check(
            reducer, "two_shot", topology, rank, BIG if nodes == 1 else BIG // 10, torch.float32, 1
        )
    reducer = opened()
    for algorithm in PROGRAMS:
        for dtype in DTYPES:
            check(reducer, algorithm, Topology(gpus_per_node=size), rank, 1009, dtype, 3)
    matrix = torch.arange(12.0).view(3, 4).t() * (rank + 1)
    result = reducer.all_reduce(matrix, algorithm="one_shot")
    assert torch.equal(matrix, torch.arange(12.0).view(3, 4).t() * (size * (size + 1) // 2))
    assert result is matrix
    for _ in range(300):
        check(reducer, "one_shot", Topology(gpus_per_node=size), rank, 33, torch.float32, 5)
    return {"calls": calls}


def exchanged(rank, size):
    """Rows to experts and back, by the library: the sums of every routing."""
    reducer = Reducer(dist.group.WORLD)
    for seed in range(36):
        case = Exchange(
            ranks=size, rows=1 + seed % 5, hidden=24, chosen=1 + seed % 4, share=1 + seed % 3,
            dtype=(torch.float32, torch.bfloat16, torch.float16)[seed % 3 - seed // 12],
        )  # fmt: skip
        x, routes = case.inputs(seed, rank)
        rows, here = reducer.dispatch(x, routes)
        assert case.misplaced(seed, rank, rows, here) == 0, case
        partial = case.partial(rows, here.ids, here.weights, rank * case.share)
        found = reducer.combine(partial, here)
        torch.testing.assert_close(found, case.expected(x, routes))
    return {"routings": 36}


def groups(rank, size):
    """Several groups at once, calls of all of them interleaved."""
    from weft.comm.all_reduce import all_reduce

    members = [tuple(range(size // 2)), tuple(range(size // 2, size)), (0, 2, 3)]
    process_groups = [dist.new_group(list(ranks)) for ranks in members]
    for turn in range(20):
        for ranks, group in zip(members, process_groups, strict=True):
            if rank not in ranks:
                continue
            value = torch.full((100 + turn,), float(rank + turn))
            all_reduce(value, group, "one_shot" if turn % 2 else "two_shot")
            assert value.eq(sum(ranks) + turn * len(ranks)).all()
        value = torch.ones(turn + 1)
        all_reduce(value)
        assert value.eq(size).all()
    outsider = next(i for i, ranks in enumerate(members) if rank not in ranks)
    return {"outsider": message(lambda: all_reduce(torch.ones(2), process_groups[outsider]))}


def message(action):
    """[type, text] of the WeftError that ``action`` raises."""
    try:
        action()
    except WeftError as error:
        return [type(error).__name__, str(error), error.exit_code]
    return None


def bad_calls(rank, size):
    odd = rank == size - 1
    results = {"nodes": message(lambda: opened(num_nodes=3))}
    for nodes in (1, 2):
        reducer = opened(num_nodes=nodes)
        bad = {
            "algorithm": (torch.ones(16), "ring" if odd else "two_shot"),
            "unknown": (torch.ones(4), "rings"),
            "type": (torch.ones(4, dtype=torch.bool), "ring"),
        }
        for algorithm in ("one_shot", "ring", "hierarchical_doubling"):
            kind = torch.bfloat16 if odd else torch.float16
            bad[f"shape {algorithm}"] = (torch.ones(17 if odd else 16), algorithm)
            bad[f"empty {algorithm}"] = (torch.ones(0 if odd else 16), algorithm)
            bad[f"dtype {algorithm}"] = (torch.ones(16, dtype=kind), algorithm)
        for name, arguments in bad.items():
            results[f"{nodes} {name}"] = message(
                partial(reducer.all_reduce, arguments[0], algorithm=arguments[1])
            )
        value = reducer.all_reduce(torch.ones(5), algorithm="two_shot")
        assert value.eq(size).all(), "the group works on after a mismatch"
    return results


def public(rank, size):
    """The public functions on random data: in place, ``out``, the fused form, its shapes."""
    from weft.comm import all_reduce as module

    generator = torch.Generator().manual_seed(7)
    parts = [torch.randn(6, 40, generator=generator) for _ in range(size)]
    residual, weight = torch.randn(6, 40, generator=generator), torch.randn(40, generator=generator)
    total = torch.stack(parts).sum(0)
    results = []
    for algorithm in ("auto", "library", "backend", "one_shot", "ring"):
        mine, out = parts[rank].clone(), torch.empty(6, 40)
        assert weft.all_reduce(mine, None, algorithm, out) is out
        assert torch.equal(mine, parts[rank])
        torch.testing.assert_close(out, total)
        assert weft.all_reduce(mine, algorithm=algorithm) is mine
        assert torch.equal(mine, out), algorithm
    mine, kept = parts[rank].clone(), residual.clone()
    normed = weft.all_reduce_residual_rms_norm(mine, kept, weight, 1e-5)
    assert torch.equal(mine, parts[rank])
    torch.testing.assert_close(kept, residual + total)
    expected = torch.nn.functional.rms_norm(residual + total, (40,), weight, 1e-5)
    torch.testing.assert_close(normed, expected)
    assert weft.all_reduce(torch.ones(3, dtype=torch.uint8))[0] == size, "by the library"
    (reducer,) = (one for (group, _), one in module._reducers.items() if group is dist.group.WORLD)
    assert reducer.name == "weft"
    bad = {
        "unknown": lambda: weft.all_reduce(torch.ones(3), None, "fastest"),
        "elsewhere": lambda: weft.all_reduce(torch.ones(3), None, "hierarchical_host"),
        "device": lambda: weft.all_reduce(torch.ones(3, device="meta")),
        "out": lambda: weft.all_reduce(torch.ones(3), out=torch.ones(4)),
        "norm": lambda: weft.all_reduce_residual_rms_norm(mine, kept[:1], weight, 1e-5),
    }
    results = {name: message(action) for name, action in bad.items()}
    start = time.monotonic()
    if rank == 1:  # alone: it is told at once, and the others wait for its next call
        results["device alone"] = message(bad["device"])
    assert weft.all_reduce(torch.ones(3))[0] == size
    assert time.monotonic() - start < 30
    other = dist.new_group(list(range(size)))
    odd = torch.ones(3, device="meta" if rank == 1 else "cpu")
    results["one device"] = message(lambda: weft.all_reduce(odd, other))
    assert weft.all_reduce(torch.ones(3), other)[0] == size, "the group works after that"
    dist.destroy_process_group(other)
    results["closed"] = message(lambda: weft.all_reduce(torch.ones(3), other))
    reducer.close()
    results["closed reducer"] = message(lambda: weft.all_reduce(torch.ones(3)))
    return results


def some_ranks(rank, size):
    """A group that rank 1 does not open: an error that names it, and on rank 1 when it comes."""
    from weft.kernels import vote

    vote.TIMEOUT_S = 2.0
    group = dist.new_group(list(range(size)))
    if rank == 1:
        time.sleep(5)
    start = time.monotonic()
    error = message(lambda: weft.all_reduce(torch.ones(3), group))
    return {"error": error, "seconds": time.monotonic() - start}


def threads(rank, size):
    """Two threads of every rank in one group: errors everywhere, and an end."""
    weft.all_reduce(torch.ones(3))
    errors = []

    def hammer():
        for _ in range(100_000):
            error = message(lambda: weft.all_reduce(torch.ones(3)))
            if error:
                errors.append(error)
                return

    both = [threading.Thread(target=hammer, daemon=True) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(timeout=100)
    return {"alive": sum(thread.is_alive() for thread in both), "errors": errors}


def compiled(rank, size):
    """The public functions under torch.compile, without a break, for more than one group."""
    group, alone = dist.new_group(list(range(size))), [dist.new_group([i]) for i in range(size)]

    def step(x, residual, weight, out):
        y = weft.all_reduce(x * 2)
        z = weft.all_reduce_residual_rms_norm(y, residual, weight, 1e-5)
        weft.all_reduce(z, group, "one_shot", out)
        return z + 1

    x, weight = inputs(size, 32, torch.float32, 1)[rank].view(4, 8), torch.ones(8)
    residuals, outs = torch.zeros(2, 4, 8), torch.zeros(2, 4, 8)
    want = step(x, residuals[0], weight, outs[0])
    fast = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(fast(x, residuals[1], weight, outs[1]), want)
    assert torch.equal(*residuals)
    assert torch.equal(*outs)
    assert outs.any()

    def one(x, group):
        return weft.all_reduce(x + 0, group)

    fast = torch.compile(one, fullgraph=True, backend="aot_eager")
    sums = [fast(torch.ones(3), it)[0].item() for it in (None, group, alone[rank], group)]
    assert sums == [size, size, 1, size], sums
    return {}


def lost(rank, size):
    """Rank 2 dies; each of three kinds of group then fails on every other rank."""
    kinds = (("two_shot", 1), ("ring", 1), ("hierarchical_doubling", 2))
    reducers = [opened(num_nodes=nodes, timeout_s=3) for _, nodes in kinds]
    for (algorithm, _), reducer in zip(kinds, reducers, strict=True):
        reducer.all_reduce(torch.ones(100), algorithm=algorithm)
    if rank == 2:
        os._exit(0)
    results = {}
    for (algorithm, _), reducer in zip(kinds, reducers, strict=True):
        start = time.monotonic()
        error = message(partial(reducer.all_reduce, torch.ones(100), algorithm=algorithm))
        results[algorithm] = {"error": error, "seconds": time.monotonic() - start}
    return results


def fabric_files(rank, size):
    good, damaged, foreign = (os.environ[name] for name in ("GOOD", "DAMAGED", "FOREIGN"))
    results = {}
    if rank == 1:
        os.environ["WEFT_FABRIC"] = damaged
    results["damaged"] = message(opened)
    os.environ["WEFT_FABRIC"] = foreign
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened()
    results["foreign"] = [str(item.message) for item in caught]
    os.environ["WEFT_FABRIC"] = good
    reducer = opened()
    results["chosen"] = [
        reducer.algorithm_for(torch.empty(count)) for count in (256, 1024, 4096, 16384, 10**6)
    ]
    return results


def main():
    scenarios, rank, size, store, output = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(size)
    )
    results = {name: globals()[name](int(rank), int(size)) for name in scenarios.split(",")}
    Path(f"{output}.{rank}").write_text(json.dumps(results))
    os._exit(0)


if __name__ == "__main__":
    main()
