"""One rank of the all-reduce tests: ``allreduce_worker.py SCENARIO RANK SIZE STORE OUTPUT``."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.program import Topology
from weft.allreduce.reference import all_reduce_reference
from weft.comm.all_reduce import open_all_reducer
from weft.comm.program_runner import DTYPES
from weft.errors import WeftError

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


def check(reducer, algorithm, topology, rank, count, dtype, seed):
    tensors = inputs(topology.ranks, count, dtype, seed)
    name = str(dtype).removeprefix("torch.")
    expected = all_reduce_reference(algorithm, topology, [stored(t) for t in tensors], name)[rank]
    result = reducer.all_reduce(tensors[rank].clone(), algorithm)
    assert stored(result).tobytes() == expected.tobytes(), (algorithm, topology, count, dtype)


def correct(rank, size):
    calls = 0
    for nodes in (n for n in range(1, size + 1) if size % n == 0):
        topology = Topology(nodes=nodes, gpus_per_node=size // nodes)
        reducer = open_all_reducer(None, range(size), num_nodes=nodes, timeout_s=60)
        for algorithm in PROGRAMS:
            for count in SIZES:
                dtype = DTYPES[(calls + count) % len(DTYPES)]
                check(reducer, algorithm, topology, rank, count, dtype, calls)
                calls += 1
        check(
            reducer, "two_shot", topology, rank, BIG if nodes == 1 else BIG // 10, torch.float32, 1
        )
    reducer = open_all_reducer(None, range(size), timeout_s=60)
    for algorithm in PROGRAMS:
        for dtype in DTYPES:
            check(reducer, algorithm, Topology(gpus_per_node=size), rank, 1009, dtype, 3)
    matrix = torch.arange(12.0).view(3, 4).t() * (rank + 1)
    result = reducer.all_reduce(matrix, "one_shot")
    assert torch.equal(matrix, torch.arange(12.0).view(3, 4).t() * (size * (size + 1) // 2))
    assert result is matrix
    for _ in range(300):
        check(reducer, "one_shot", Topology(gpus_per_node=size), rank, 33, torch.float32, 5)
    return {"calls": calls}


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
    results = {"nodes": message(lambda: open_all_reducer(None, range(size), num_nodes=3))}
    for nodes in (1, 2):
        reducer = open_all_reducer(None, range(size), num_nodes=nodes, timeout_s=60)
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
            results[f"{nodes} {name}"] = message(partial(reducer.all_reduce, *arguments))
        value = reducer.all_reduce(torch.ones(5), "two_shot")
        assert value.eq(size).all(), "the group works on after a mismatch"
    return results


def lost(rank, size):
    """Rank 2 dies; each of three kinds of group then fails on every other rank."""
    kinds = (("two_shot", 1), ("ring", 1), ("hierarchical_doubling", 2))
    reducers = [
        open_all_reducer(None, range(size), num_nodes=nodes, timeout_s=3) for _, nodes in kinds
    ]
    for (algorithm, _), reducer in zip(kinds, reducers, strict=True):
        reducer.all_reduce(torch.ones(100), algorithm)
    if rank == 2:
        os._exit(0)
    results = {}
    for (algorithm, _), reducer in zip(kinds, reducers, strict=True):
        start = time.monotonic()
        error = message(partial(reducer.all_reduce, torch.ones(100), algorithm))
        results[algorithm] = {"error": error, "seconds": time.monotonic() - start}
    return results


def fabric_files(rank, size):
    good, damaged, foreign = (os.environ[name] for name in ("GOOD", "DAMAGED", "FOREIGN"))
    results = {}
    if rank == 1:
        os.environ["WEFT_FABRIC"] = damaged
    results["damaged"] = message(lambda: open_all_reducer(None, range(size)))
    os.environ["WEFT_FABRIC"] = foreign
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_all_reducer(None, range(size))
    results["foreign"] = [str(item.message) for item in caught]
    os.environ["WEFT_FABRIC"] = good
    reducer = open_all_reducer(None, range(size))
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
