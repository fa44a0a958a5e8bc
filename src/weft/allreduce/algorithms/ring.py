"""Ring: reduce-scatter and all-gather over neighbours, 2(n-1) steps of 1/n of the message.

Sum order: chunk c is added rank by rank around the ring, from rank c on.
"""

from __future__ import annotations

from weft.allreduce.program import Program, Round, Topology, combine, send, slice_of


def program(topology: Topology, count: int, rank: int) -> Program:
    size = topology.ranks
    after, before = (rank + 1) % size, (rank - 1) % size

    def chunk(index: int) -> tuple[int, int]:
        return slice_of(index % size, size, 0, count)

    reduce_steps = [
        Round(
            "ring reduce-scatter",
            send(after, chunk(rank - step)),
            combine(chunk(rank - step - 1), (before, rank)),
        )
        for step in range(size - 1)
    ]
    gather_steps = [
        Round(
            "ring all-gather",
            send(after, chunk(rank + 1 - step)),
            combine(chunk(rank - step), (before,)),
        )
        for step in range(size - 1)
    ]
    return (*reduce_steps, *gather_steps)
