"""Run the programs of all ranks in lock step: the result that every transport must give."""

from __future__ import annotations

from collections.abc import Sequence

from weft.allreduce.algorithms import build
from weft.allreduce.numerics import Values, add_in_order
from weft.allreduce.program import Combine, Program, Topology


def all_reduce_reference(
    algorithm: str, topology: Topology, inputs: Sequence[Values], dtype: str
) -> list[Values]:
    """The result of every rank; ``inputs`` are one [count] array a rank, in stored form."""
    count = len(inputs[0])
    programs = [build(algorithm, topology, count, rank) for rank in range(topology.ranks)]
    values = [item.copy() for item in inputs]
    for index in range(len(programs[0])):
        values = _lock_step(programs, index, values, dtype)
    return values


def _lock_step(
    programs: Sequence[Program], index: int, values: list[Values], dtype: str
) -> list[Values]:
    after = [item.copy() for item in values]
    for rank, program in enumerate(programs):
        for combine in program[index].combines:
            parts = [
                _sent(programs, index, source, rank, combine, values) for source in combine.sources
            ]
            after[rank][combine.start : combine.stop] = add_in_order(parts, dtype)
    return after


def _sent(
    programs: Sequence[Program],
    index: int,
    source: int,
    rank: int,
    combine: Combine,
    values: list[Values],
) -> Values:
    """What ``source`` sends to ``rank`` in this step (its own values where they are one rank)."""
    bounds = (combine.start, combine.stop)
    if source != rank:
        sends = [item for item in programs[source][index].sends if item.target == rank]
        assert [(item.start, item.stop) for item in sends] == [bounds], "send and combine differ"
    return values[source][slice(*bounds)]
