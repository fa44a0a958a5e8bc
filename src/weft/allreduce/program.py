"""A rank's program: who gets which slice from whom, and in which order it is summed.

A program says nothing of how bytes travel. The simulator runs it over α-β links, the
communicator over shared memory or sockets.

Rules that every program keeps:
* each rank has as many steps as every other; a step may be empty;
* in one step a rank sends at most one slice to a peer, and sends only values that it
  held when the step began; values are rounded to the tensor's type between steps;
* a combine adds its sources in the order written, in float32 for 16-bit types; the
  rank's own number among them stands for its own values; one foreign source is a copy;
* every element of the result depends on every rank's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from weft.fabric.fabric import check_shape


@dataclass(frozen=True, slots=True)
class Send:
    """Send elements ``start`` to ``stop`` of the working buffer to rank ``target``."""

    target: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Combine:
    """Elements ``start`` to ``stop`` become the sum of ``sources``, added in that order."""

    start: int
    stop: int
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """Send first, then combine; the next step begins when every combine is done."""

    name: str
    sends: tuple[Send, ...] = ()
    combines: tuple[Combine, ...] = ()

    def receives(self, rank: int) -> Iterator[tuple[int, Combine]]:
        """(source, combine) of every slice that ``rank`` waits for in this step."""
        for combine in self.combines:
            for source in combine.sources:
                if source != rank:
                    yield source, combine


Program = tuple[Round, ...]


@dataclass(frozen=True, kw_only=True)
class Topology:
    """``nodes`` machines of ``gpus_per_node`` ranks, numbered node by node."""

    nodes: int = 1
    gpus_per_node: int = 1

    def __post_init__(self) -> None:
        check_shape(self.nodes, self.gpus_per_node)

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    def node_of(self, rank: int) -> int:
        return rank // self.gpus_per_node

    def node_members(self, rank: int) -> range:
        """The ranks of the node that holds ``rank``."""
        first = rank - rank % self.gpus_per_node
        return range(first, first + self.gpus_per_node)

    def rail_members(self, rank: int) -> range:
        """The ranks of the same place in every node."""
        return range(rank % self.gpus_per_node, self.ranks, self.gpus_per_node)


def slice_of(part: int, num_parts: int, start: int, stop: int) -> tuple[int, int]:
    """Part ``part`` of ``num_parts`` nearly equal parts of [start, stop); none is dropped."""
    length = stop - start
    return start + part * length // num_parts, start + (part + 1) * length // num_parts


def send(target: int, bounds: tuple[int, int]) -> tuple[Send, ...]:
    """One send, or none where the slice is empty."""
    start, stop = bounds
    return (Send(target, start, stop),) if stop > start else ()


def combine(bounds: tuple[int, int], sources: tuple[int, ...]) -> tuple[Combine, ...]:
    """One combine, or none where the slice is empty."""
    start, stop = bounds
    return (Combine(start, stop, sources),) if stop > start else ()


def after(rank: int, members: range) -> list[int]:
    """The other members, starting with the one after ``rank``: spreads the receivers."""
    place = members.index(rank)
    size = len(members)
    return [members[(place + offset) % size] for offset in range(1, size)]
