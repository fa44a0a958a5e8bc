"""Random cases for the protocol emulator: drawn, run and checked.

The tests let Hypothesis draw them; ``python -m weft.allreduce.soak --cases 200000`` runs
as many as asked, over as many processes as asked, and prints what it did.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from weft.allreduce.algorithms import PROGRAMS, build
from weft.allreduce.emulator import Call, Emulator, Faults, Lost, Outcome
from weft.allreduce.numerics import STORAGE, Values, from_float, to_float
from weft.allreduce.packets import LAST_EPOCH, WORDS_PER_PACKET, Packet
from weft.allreduce.program import Topology
from weft.allreduce.reference import all_reduce_reference
from weft.errors import CheckFailed

SIZES: Final = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    13,
    15,
    16,
    17,
    31,
    32,
    33,
    61,
    63,
    64,
    65,
    127,
    128,
    129,
)
MAX_RANKS: Final = 64
MAX_NODES: Final = 16

NO_FAULTS: Final = Faults()


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything that one run of the emulator needs; equal cases run equally."""

    topology: Topology
    algorithms: tuple[str, ...]
    counts: tuple[int, ...]
    dtypes: tuple[str, ...]
    packet: Packet
    last_epoch: int
    stale_flags: int
    exact: bool
    seed: int
    lost: Lost | None = None

    def emulator(self, faults: Faults = NO_FAULTS) -> Emulator:
        return Emulator(
            topology=self.topology,
            calls=self.calls(),
            seed=self.seed,
            packet=self.packet,
            last_epoch=self.last_epoch,
            stale_flags=self.stale_flags,
            faults=faults,
            lost=self.lost,
        )

    def calls(self) -> list[Call]:
        generator = np.random.default_rng(self.seed)
        return [
            Call(
                algorithm=algorithm,
                dtype=dtype,
                inputs=tuple(
                    _values(generator, count, dtype, self.exact) for _ in range(self.topology.ranks)
                ),
            )
            for algorithm, count, dtype in zip(
                self.algorithms, self.counts, self.dtypes, strict=True
            )
        ]


def _values(generator: np.random.Generator, count: int, dtype: str, exact: bool) -> Values:
    """Small whole numbers, whose sums are exact in every type and order, or normal ones."""
    if exact or dtype.startswith("int"):
        return from_float(generator.integers(-2, 3, count).astype(np.float32), dtype)
    return from_float(generator.standard_normal(count, dtype=np.float32), dtype)


def random_case(rng: random.Random, algorithm: str | None = None, lose: bool = False) -> Case:
    """Draw one case; ``algorithm`` None mixes them; ``lose`` lets one rank die on the way."""
    topology = _topology(rng)
    num_calls = 2 if topology.ranks > 16 else rng.randint(2, 4)
    largest = 17 if topology.ranks > 16 else 65 if topology.ranks > 8 else 129
    sizes = [size for size in SIZES if size <= largest]
    algorithms = tuple(algorithm or rng.choice(list(PROGRAMS)) for _ in range(num_calls))
    counts = [rng.choice(sizes) for _ in range(num_calls)]
    if lose:
        counts = [max(count, topology.ranks) for count in counts]
    near_wrap = rng.random() < 0.5
    last_epoch = LAST_EPOCH - rng.randint(2, 4) if near_wrap else rng.randint(0, 2**31)
    return Case(
        topology=topology,
        algorithms=algorithms,
        counts=tuple(counts),
        dtypes=tuple(rng.choice(list(STORAGE)) for _ in range(num_calls)),
        packet=rng.choice(list(WORDS_PER_PACKET)),
        last_epoch=last_epoch,
        stale_flags=4 if near_wrap else 0,
        exact=rng.random() < 0.5,
        seed=rng.randint(0, 2**32 - 1),
        lost=_lost(rng, topology, algorithms, counts) if lose else None,
    )


def _topology(rng: random.Random) -> Topology:
    """Mostly up to 12 ranks, where a case takes milliseconds; now and then up to 64."""
    most = MAX_RANKS if rng.random() < 0.04 else 12
    nodes = rng.choice((1, 1, 2, 2, 3, 4, 5, rng.randint(1, min(most, MAX_NODES))))
    width = min(rng.choice((1, 2, 2, 3, 4, rng.randint(1, most))), most // nodes)
    return Topology(nodes=nodes, gpus_per_node=2 if nodes * width == 1 else width)


def _lost(
    rng: random.Random, topology: Topology, algorithms: Sequence[str], counts: Sequence[int]
) -> Lost:
    """A rank that dies in any call but the last, before or between its sends."""
    rank, call = rng.randrange(topology.ranks), rng.randrange(len(algorithms) - 1)
    program = build(algorithms[call], topology, counts[call], rank)
    step = rng.randrange(len(program))
    return Lost(rank=rank, call=call, step=step, sends=rng.randint(0, len(program[step].sends)))


def check_case(case: Case, faults: Faults = NO_FAULTS) -> Outcome:
    """Run a case; CheckFailed names what is wrong with the outcome."""
    outcome = case.emulator(faults).run()
    if case.lost is None:
        _check_results(case, outcome)
    else:
        _check_lost(case, case.lost, outcome)
    return outcome


def _check_results(case: Case, outcome: Outcome) -> None:
    if outcome.errors:
        raise CheckFailed(f"{case}: no rank was lost, but {next(iter(outcome.errors.values()))}")
    for call, results in zip(case.calls(), outcome.results, strict=True):
        expected = all_reduce_reference(call.algorithm, case.topology, call.inputs, call.dtype)[0]
        for rank, result in enumerate(results):
            if result is None or result.tobytes() != expected.tobytes():
                raise CheckFailed(f"{case}: rank {rank} has {result}, expected {expected}")
        if case.exact:
            _check_sum(case, call, expected)


def _check_sum(case: Case, call: Call, result: Values) -> None:
    total = np.sum([to_float(item, call.dtype) for item in call.inputs], axis=0, dtype=np.float64)
    if not np.array_equal(to_float(result, call.dtype), total):
        raise CheckFailed(f"{case}: the sum is {total}, not {to_float(result, call.dtype)}")


def _check_lost(case: Case, lost: Lost, outcome: Outcome) -> None:
    """Every other rank fails, names the lost one, and gives no result after it died."""
    for rank in range(case.topology.ranks):
        if rank == lost.rank:
            continue
        error = outcome.errors.get(rank)
        if error is None or not str(error).startswith(f"lost rank {lost.rank} in step "):
            raise CheckFailed(f"{case}: rank {rank} should name rank {lost.rank}, says {error}")
        if any(results[rank] is not None for results in outcome.results[lost.call + 1 :]):
            raise CheckFailed(
                f"{case}: rank {rank} has a result of a call without rank {lost.rank}"
            )


def run_cases(cases: int, seed: int) -> int:
    """Run that many cases, every tenth with a lost rank; returns how far any rank ran ahead."""
    rng = random.Random(seed)  # noqa: S311 - test data
    furthest = 0
    for number in range(cases):
        case = random_case(rng, lose=number % 10 == 9)
        furthest = max(furthest, check_case(case).furthest_ahead)
    return furthest


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the long run."""
    parser = argparse.ArgumentParser(prog="python -m weft.allreduce.soak", description=__doc__)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(arguments)
    start = time.monotonic()
    batch = 500
    seeds = range(options.seed, options.seed + -(-options.cases // batch))
    furthest = 0
    with ProcessPoolExecutor(options.processes) as pool:
        for done, ahead in enumerate(pool.map(partial(run_cases, batch), seeds), start=1):
            furthest = max(furthest, ahead)
            print(f"\r{done * batch} cases", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - start
    print(
        f"\n{len(seeds) * batch} cases, no fault, {seconds:.0f} s; furthest ahead {furthest} call(s)"
    )


if __name__ == "__main__":
    main()
