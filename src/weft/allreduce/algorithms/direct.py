"""Building blocks of one hop: reduce-scatter, all-gather and exchange among some ranks."""

from __future__ import annotations

from weft.allreduce.program import Round, after, combine, send, slice_of


def reduce_scatter_step(name: str, members: range, rank: int, bounds: tuple[int, int]) -> Round:
    """Each member gets its own slice of ``bounds`` from all and adds in member order."""
    size = len(members)
    sends = [
        item
        for peer in after(rank, members)
        for item in send(peer, slice_of(members.index(peer), size, *bounds))
    ]
    own = slice_of(members.index(rank), size, *bounds)
    return Round(name, tuple(sends), combine(own, tuple(members)))


def all_gather_step(name: str, members: range, rank: int, bounds: tuple[int, int]) -> Round:
    """Each member sends its own slice of ``bounds`` to all."""
    size = len(members)
    own = slice_of(members.index(rank), size, *bounds)
    sends = [item for peer in after(rank, members) for item in send(peer, own)]
    copies = [
        item
        for place, peer in enumerate(members)
        if peer != rank
        for item in combine(slice_of(place, size, *bounds), (peer,))
    ]
    return Round(name, tuple(sends), tuple(copies))


def exchange_step(name: str, members: range, rank: int, bounds: tuple[int, int]) -> Round:
    """Each member sends all of ``bounds`` to all and adds in member order."""
    sends = [item for peer in after(rank, members) for item in send(peer, bounds)]
    return Round(name, tuple(sends), combine(bounds, tuple(members)))
