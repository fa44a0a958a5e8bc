"""Two-shot push: each slice goes to its owner, who adds in rank order and fans the sum out."""

from __future__ import annotations

from weft.allreduce.algorithms.direct import all_gather_step, reduce_scatter_step
from weft.allreduce.program import Program, Topology


def program(topology: Topology, count: int, rank: int) -> Program:
    everyone = range(topology.ranks)
    return (
        reduce_scatter_step("two-shot reduce", everyone, rank, (0, count)),
        all_gather_step("two-shot fan-out", everyone, rank, (0, count)),
    )
