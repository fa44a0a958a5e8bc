"""One-shot push: every rank sends everything to every other rank, each adds in rank order."""

from __future__ import annotations

from weft.allreduce.program import Program, Step, Topology, after, combine, send


def program(topology: Topology, count: int, rank: int) -> Program:
    everyone = range(topology.ranks)
    whole = (0, count)
    sends = [item for peer in after(rank, everyone) for item in send(peer, whole)]
    return (Step("one-shot push", tuple(sends), combine(whole, tuple(everyone))),)
