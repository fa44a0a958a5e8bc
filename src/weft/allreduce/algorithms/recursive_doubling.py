"""Recursive doubling: log2(n) pairwise exchanges of everything.

A pair adds the same two values, so both sides hold the same bits. Where n is no power
of two, some ranks fold in before the exchanges and get the result after them.
"""

from __future__ import annotations

from weft.allreduce.pairing import Pairing
from weft.allreduce.program import Program, Round, Topology, combine, send


def program(topology: Topology, count: int, rank: int) -> Program:
    return tuple(doubling_steps("recursive doubling", range(topology.ranks), rank, (0, count)))


def doubling_steps(name: str, members: range, rank: int, bounds: tuple[int, int]) -> list[Round]:
    """Recursive doubling of ``bounds`` among ``members``."""
    pairing = Pairing(len(members), 1)
    place = members.index(rank)
    middle = [
        _exchange(f"{name} at distance {distance}", members, pairing, place, distance, bounds)
        for distance in pairing.distances
    ]
    return fold(name, members, pairing, place, bounds, middle)


def fold(
    name: str,
    members: range,
    pairing: Pairing,
    place: int,
    bounds: tuple[int, int],
    middle: list[Round],
) -> list[Round]:
    """Put the fold-in before ``middle`` and the hand-back after it, where they are needed."""
    if not pairing.num_folded:
        return middle
    fold_name, back_name = f"{name} fold-in", f"{name} hand-back"
    if place >= 2 * pairing.num_folded:
        return [Round(fold_name), *middle, Round(back_name)]
    rank, partner = members[place], members[place ^ 1]
    if place % 2:
        before = Round(fold_name, send(partner, bounds))
        return [before, *middle, Round(back_name, (), combine(bounds, (partner,)))]
    before = Round(fold_name, (), combine(bounds, (rank, partner)))
    return [before, *middle, Round(back_name, send(partner, bounds))]


def _exchange(
    name: str,
    members: range,
    pairing: Pairing,
    place: int,
    distance: int,
    bounds: tuple[int, int],
) -> Round:
    index = pairing.index_of(place)
    if index is None:
        return Round(name)
    peer = members[pairing.rank_of(index ^ distance)]
    pair = tuple(sorted((members[place], peer)))
    return Round(name, send(peer, bounds), combine(bounds, pair))
