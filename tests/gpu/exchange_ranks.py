"""One rank of the tests of the exchange with experts: ``exchange_ranks.py CASE``."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from allreduce_ranks import agreed, main, opened, set_epoch

from exchange_reference import Exchange
from weft.errors import LostRankError
from weft.kernels.communicator import DeviceAllReduce
from weft.kernels.reducer import Reducer
from weft.vocabulary.routes import Routes

DTYPES = (torch.bfloat16, torch.float32, torch.float16)


class Round:
    """One exchange with made-up experts on tensors that stay where they are."""

    def __init__(self, comm: DeviceAllReduce, case: Exchange) -> None:
        self.comm, self.case = comm, case
        self.inputs = case.inputs(0, comm.rank)

    def run(self, reducer: type[Reducer]) -> tuple[torch.Tensor, Routes, torch.Tensor]:
        """(rows and routes that were dispatched, the sums) by the methods of a class of reducers."""
        case, rank = self.case, self.comm.rank
        rows, here = reducer.dispatch(self.comm, *self.inputs)
        partial = case.partial(rows, here.ids, here.weights, rank * case.share)
        return rows, here, reducer.combine(self.comm, partial, here)

    def take(self, seed: int) -> None:
        """Other rows and routes."""
        (x, routes), (rows, given) = self.inputs, self.case.inputs(seed, self.comm.rank)
        for tensor, value in ((x, rows), (routes.ids, given.ids), (routes.weights, given.weights)):
            tensor.copy_(value)

    def problem(
        self, seed: int, rows: torch.Tensor, here: Routes, sums: torch.Tensor
    ) -> str | None:
        """What is wrong with the result of a seed."""
        if here.passages is None:
            return f"{self.case}: not by the kernels"
        wrong = self.case.misplaced(seed, self.comm.rank, rows, here)
        off = int((sums != self.case.expected(*self.inputs)).sum())
        return f"{self.case} seed {seed}: {wrong} misplaced, {off} sums" if wrong + off else None


def a_case(rng: random.Random, ranks: int) -> Exchange:
    return Exchange(
        ranks=ranks,
        rows=rng.choice((1, 2, 8, 31, 64, 256)),
        hidden=rng.choice((8, 64, 1000, 2048, 4096, 7168)),
        chosen=rng.choice((1, 2, 4, 8, 9)),
        share=rng.choice((1, 2, 8, 32, 128)),
        dtype=rng.choice(DTYPES),
        device="cuda",
    )


def case_exchange(group: dist.ProcessGroup, count: str, budget_s: str) -> dict:
    """COUNT random exchanges between all-reduces of the same communicator, all bits compared."""
    rng, end = random.Random(int(count)), time.monotonic() + float(budget_s)
    problems, done = [], 0
    with opened(group, max_bytes=32 << 20, timeout_s=20) as comm:
        set_epoch(comm, 2**32 - 5)
        for seed in range(int(count)):
            turn = Round(comm, a_case(rng, comm.num_ranks))
            turn.take(seed)
            problem = turn.problem(seed, *turn.run(DeviceAllReduce))
            problems += [problem] if problem else []
            if rng.random() < 0.3:
                ones = torch.ones(rng.randint(1, 9000), device="cuda")
                if not bool((comm.all_reduce(ones) == comm.num_ranks).all()):
                    problems.append(f"all-reduce after seed {seed}")
            done += 1
            if seed % 20 == 19 and agreed(group, time.monotonic() > end):
                break
        torch.cuda.synchronize()
        comm.check()
    return {"cases": done, "problems": problems[:5], "ok": not problems}


def captured(work: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of ``work``, which has run once before, and what it returns there."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
        result = work()
    return graph, result


def case_exchange_graph(group: dist.ProcessGroup, replays: str, beside: str = "") -> dict:
    """Graphs of 1 to 64 rows, replayed in any order with other routes, one rank late now and then.

    beside: also the library's all-to-all in graphs of its own (each rank needs a GPU).
    """
    if beside:
        group = dist.new_group(backend="nccl")
    problems: list[str] = []
    with opened(group, max_bytes=32 << 20, timeout_s=20) as comm:
        set_epoch(comm, 2**32 - 50)
        graphs = []
        for number, rows in enumerate((1, 8, 32, 64)):
            for dtype in DTYPES[:2]:
                case = Exchange(
                    ranks=comm.num_ranks, rows=rows, hidden=(2048, 1032)[number % 2], chosen=8,
                    share=32, dtype=dtype, device="cuda",
                )  # fmt: skip
                turn = Round(comm, case)
                library = captured(lambda turn=turn: turn.run(Reducer)) if beside else None
                graphs.append(
                    (turn, captured(lambda turn=turn: turn.run(DeviceAllReduce)), library)
                )
        rng, late = random.Random(5), random.Random(comm.rank)
        for seed in range(int(replays)):
            turn, (graph, result), library = rng.choice(graphs)
            turn.take(seed)
            if late.randrange(7) == 0:
                torch.cuda._sleep(late.randint(1000, 400000))
            graph.replay()
            problem = turn.problem(seed, *result)
            if library is not None:
                library[0].replay()
                rows, here, sums = library[1]
                wrong = turn.case.misplaced(seed, comm.rank, rows, here)
                step = 2 * torch.finfo(turn.case.dtype).eps
                same = torch.allclose(result[2].float(), sums.float(), rtol=step, atol=step)
                if wrong or here.passages is not None or not same:
                    problem = f"{turn.case} seed {seed}: the library's is another"
            problems += [problem] if problem else []
        torch.cuda.synchronize()
        comm.check()
        graphs.clear()
        del turn, graph, result, library
    return {"replays": int(replays), "problems": problems[:5], "ok": not problems}


def case_exchange_late(group: dist.ProcessGroup) -> dict:
    """A rank that comes after the bound: every rank hears of it, and nothing stale is summed."""
    comm = DeviceAllReduce(group, max_bytes=1 << 20, timeout_s=1.0)
    case = Exchange(
        ranks=comm.num_ranks, rows=4, hidden=512, chosen=4, share=4, dtype=DTYPES[0], device="cuda"
    )
    turn = Round(comm, case)
    turn.run(DeviceAllReduce)
    torch.cuda.synchronize()
    if comm.rank == 0:
        time.sleep(3.0)
    comm.dispatch(*turn.inputs)
    torch.cuda.synchronize()
    message = ""
    try:
        comm.check()
    except LostRankError as error:
        message = str(error)
    comm.close()
    dist.barrier(group)
    return {"ok": "exchange with experts" in message and "rank 0" in message, "message": message}


if __name__ == "__main__":
    main(globals())
