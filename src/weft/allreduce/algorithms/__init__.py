"""The all-reduce algorithms, one file each, as transport-free programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from weft.allreduce.algorithms import (
    halving_doubling,
    hierarchical_direct,
    hierarchical_doubling,
    one_shot,
    recursive_doubling,
    ring,
    two_shot,
)
from weft.allreduce.errors import UnknownAlgorithmError
from weft.allreduce.program import Program, Topology

Builder = Callable[[Topology, int, int], Program]

PROGRAMS: Final[dict[str, Builder]] = {
    "ring": ring.program,
    "recursive_doubling": recursive_doubling.program,
    "halving_doubling": halving_doubling.program,
    "one_shot": one_shot.program,
    "two_shot": two_shot.program,
    "hierarchical_doubling": hierarchical_doubling.program,
    "hierarchical_direct": hierarchical_direct.program,
}


def build(algorithm: str, topology: Topology, count: int, rank: int) -> Program:
    """The program of one rank for ``count`` elements.

    Raises UnknownAlgorithmError. One rank alone, or no element, has nothing to do.
    """
    builder = PROGRAMS.get(algorithm)
    if builder is None:
        raise UnknownAlgorithmError(
            f"algorithm {algorithm!r}: unknown; choose one of {', '.join(PROGRAMS)}"
        )
    if topology.ranks == 1 or count == 0:
        return ()
    return builder(topology, count, rank)
