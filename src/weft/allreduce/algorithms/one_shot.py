"""One-shot push: every rank sends everything to every other rank, each adds in rank order."""

from __future__ import annotations

from weft.allreduce.algorithms.direct import exchange_step
from weft.allreduce.program import Program, Topology


def program(topology: Topology, count: int, rank: int) -> Program:
    return (exchange_step("one-shot push", range(topology.ranks), rank, (0, count)),)
