"""Recursive halving (reduce-scatter) and recursive doubling (all-gather) of the halves.

Exchanges m/2, m/4, ... and back, nearest peers first; folds in as recursive doubling does.
"""

from __future__ import annotations

from weft.allreduce.algorithms.recursive_doubling import fold
from weft.allreduce.pairing import Pairing
from weft.allreduce.program import Program, Round, Topology, combine, send

Bounds = tuple[int, int]


def program(topology: Topology, count: int, rank: int) -> Program:
    pairing = Pairing(topology.ranks, 1)
    index = pairing.index_of(rank)
    whole = (0, count)
    if index is None:
        middle = _idle_steps(pairing)
    else:
        middle = _halve(pairing, rank, index, whole) + _double(pairing, index, whole)
    members = range(topology.ranks)
    return tuple(fold("halving-doubling", members, pairing, rank, whole, middle))


def _halve(pairing: Pairing, rank: int, index: int, whole: Bounds) -> list[Round]:
    steps = []
    bounds = whole
    for distance in pairing.distances:
        peer = pairing.rank_of(index ^ distance)
        kept, given = _halves(bounds, index, distance)
        pair = tuple(sorted((rank, peer)))
        steps.append(Round(_name("halving", distance), send(peer, given), combine(kept, pair)))
        bounds = kept
    return steps


def _double(pairing: Pairing, index: int, whole: Bounds) -> list[Round]:
    """The halving steps backwards: give what is kept, get what was given."""
    steps = []
    bounds = whole
    for distance in pairing.distances:
        peer = pairing.rank_of(index ^ distance)
        kept, given = _halves(bounds, index, distance)
        steps.append(Round(_name("doubling", distance), send(peer, kept), combine(given, (peer,))))
        bounds = kept
    return steps[::-1]


def _idle_steps(pairing: Pairing) -> list[Round]:
    halving = [Round(_name("halving", distance)) for distance in pairing.distances]
    doubling = [Round(_name("doubling", distance)) for distance in reversed(pairing.distances)]
    return halving + doubling


def _halves(bounds: Bounds, index: int, distance: int) -> tuple[Bounds, Bounds]:
    """(kept, given): the upper half stays where the bit of ``distance`` is set."""
    start, stop = bounds
    middle = (start + stop) // 2
    lower, upper = (start, middle), (middle, stop)
    return (upper, lower) if index & distance else (lower, upper)


def _name(phase: str, distance: int) -> str:
    return f"recursive {phase} at distance {distance}"
