"""Which kernel, with which launch shape, for a message: decided once a size, not in a call.

The built-in table (launch_shapes.json) was measured, see docs/kernels.md; a message above its
last row goes to the library's own all-reduce, which is faster there. Where this machine was
calibrated, the algorithm comes from its fabric file and the table gives the launch shape.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from weft.allreduce.selection import AUTO, BACKEND
from weft.errors import UserError

FLAT: Final = ("one_shot", "two_shot")
HIERARCHICAL: Final = ("hierarchical_direct", "hierarchical_doubling")
HOST: Final = "hierarchical_host"
NVSHMEM: Final = "hierarchical_nvshmem"
BETWEEN_NODES: Final = {"peer": HIERARCHICAL, "nvshmem": (NVSHMEM,), "tcp": (HOST,)}
"""The algorithms of every transport between nodes."""

VECTOR_BYTES: Final = 16
MAX_BLOCKS: Final = 512  # kMaxBlocks of comm.cuh
MAX_RANKS: Final = 8
PIECE_BYTES: Final = 132 * 512 * VECTOR_BYTES
"""The most of a message over TCP, for each rank of a node, that one launch sums."""

Pick = Callable[[int], str]
"""The fastest measured algorithm for a number of bytes."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A kernel and the shape of its launch; a thread handles one vector of every rank."""

    algorithm: str
    threads: int
    max_blocks: int = 264

    def blocks(self, num_bytes: int, ranks_sharing: int) -> int:
        """Blocks for a message: a thread for every vector, as far as ``max_blocks`` go.

        ranks_sharing: between how many ranks a message is split (1 for one-shot).
        """
        vectors = -(-num_vectors(num_bytes) // ranks_sharing)
        return max(1, min(self.max_blocks, -(-vectors // self.threads)))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Messages of at most ``max_bytes`` use ``variant``."""

    max_bytes: int
    variant: Variant


@dataclass(frozen=True, kw_only=True)
class GroupShape:
    """How the ranks of a communicator are spread: ``nodes`` equal nodes, linked by a transport."""

    num_ranks: int
    nodes: int = 1
    transport: str = "peer"

    @property
    def ranks_per_node(self) -> int:
        """Ranks of one node."""
        return self.num_ranks // self.nodes

    @property
    def algorithms(self) -> tuple[str, ...]:
        """What can be asked for by name."""
        flat = FLAT if self.transport == "peer" else ()
        return flat if self.transport == "peer" and self.nodes == 1 else (*flat, *self._between)

    @property
    def _between(self) -> tuple[str, ...]:
        return BETWEEN_NODES[self.transport]

    def reachable(self, rank: int) -> range | None:
        """Whose GPU memory ``rank`` maps: all ranks' (None), or those of its node."""
        if self.transport == "peer":
            return None
        first = rank // self.ranks_per_node * self.ranks_per_node
        return range(first, first + self.ranks_per_node)

    def sharing(self, algorithm: str) -> int:
        """Between how many ranks an algorithm splits a message."""
        if algorithm == "one_shot":
            return 1
        return self.num_ranks if algorithm == "two_shot" else self.ranks_per_node

    @property
    def piece_bytes(self) -> int:
        """The most that one launch sums; larger messages take several."""
        return PIECE_BYTES * self.ranks_per_node if self.transport == "tcp" else sys.maxsize

    def launch_bytes(self, variant: Variant) -> int:
        """What one launch of ``variant`` sums at most.

        Over TCP a block handles one chunk: proxies send chunks in order, and one that has no
        multiprocessor yet must not hold up a second chunk of one that has.
        """
        if self.transport != "tcp":
            return self.piece_bytes
        at_once = variant.max_blocks * variant.threads * VECTOR_BYTES * self.ranks_per_node
        return min(self.piece_bytes, at_once)

    def needs(self, algorithm: str, num_bytes: int) -> int:
        """Bytes of mailbox that a message takes at every rank."""
        sharing = self.sharing(algorithm)
        num_bytes = min(num_bytes, self.piece_bytes)
        part = -(-num_vectors(num_bytes) // sharing) * VECTOR_BYTES
        if algorithm == "one_shot":
            return part * self.num_ranks
        if algorithm in HIERARCHICAL:
            return part * (2 * sharing + max(self.nodes, 5))
        return part * 2 * sharing

    def table(self) -> tuple[tuple[int, str], ...]:
        """(largest bytes, algorithm) of every rule that can apply; the first is preferred."""
        return tuple((rule.max_bytes, rule.variant.algorithm) for rule in self.rules())

    def preferred(self, num_bytes: int) -> str:
        """What the built-in table says."""
        return next((name for most, name in self.table() if num_bytes <= most), BACKEND)

    def rules(self) -> Sequence[Rule]:
        """Every rule that can apply."""
        table = _table()
        known = [int(size) for size in table["flat"]]
        size = next((size for size in known if self.num_ranks <= size), known[-1])
        rules = (*table["flat"][str(size)], *table["between_nodes"][self.transport])
        return tuple(rule for rule in rules if rule.variant.algorithm in self.algorithms)


def choose(
    topology: GroupShape,
    num_bytes: int,
    algorithm: str,
    capacity_bytes: int,
    pick: Pick | None = None,
) -> Variant | None:
    """The variant for a message, or None for the library's own all-reduce.

    ``algorithm`` is "auto", "backend" or one of the topology's; ``capacity_bytes`` is the size
    of one mailbox; ``pick`` decides for "auto" (default: the built-in table). UserError names
    a message that does not fit.
    """
    asked = algorithm != AUTO
    if not asked:
        algorithm = pick(num_bytes) if pick is not None else topology.preferred(num_bytes)
    if algorithm == BACKEND:
        return None
    if topology.needs(algorithm, num_bytes) > capacity_bytes:
        if not asked:
            return None
        raise UserError(
            f"a message of {num_bytes} bytes does not fit {algorithm} with "
            f"{topology.num_ranks} ranks: {capacity_bytes} bytes of mailbox; raise max_bytes of "
            "the communicator"
        )
    same = [rule for rule in topology.rules() if rule.variant.algorithm == algorithm]
    default = same[-1].variant if same else Variant(algorithm=algorithm, threads=256)
    return next((rule.variant for rule in same if num_bytes <= rule.max_bytes), default)


def capacity(topology: GroupShape, max_bytes: int) -> int:
    """Mailbox bytes so that messages of up to ``max_bytes`` fit what "auto" chooses for them.

    Every algorithm but one-shot, whose need grows with the ranks, can then be asked for by name.
    """
    sizes = {max_bytes, *(size for size, _ in topology.table() if size <= max_bytes)}
    chosen = ((size, topology.preferred(size)) for size in sizes)
    needed = [topology.needs(name, size) for size, name in chosen if name != BACKEND]
    named = (name for name in topology.algorithms if name != "one_shot")
    needed += [topology.needs(name, max_bytes) for name in named]
    return -(-(max(needed) + 4 * topology.num_ranks * VECTOR_BYTES) // 4096) * 4096


def num_vectors(num_bytes: int) -> int:
    """16-byte vectors that hold ``num_bytes``."""
    return -(-num_bytes // VECTOR_BYTES)


@cache
def _table() -> dict[str, dict[str, tuple[Rule, ...]]]:
    """{"flat": {largest group: rules}, "between_nodes": {transport: rules}}."""
    document = json.loads(Path(__file__).with_name("launch_shapes.json").read_text("utf-8"))
    return {
        part: {name: tuple(map(_rule, rules)) for name, rules in document[part].items()}
        for part in ("flat", "between_nodes")
    }


def _rule(row: dict[str, Any]) -> Rule:
    shape = {key: value for key, value in row.items() if key != "max_bytes"}
    return Rule(max_bytes=row["max_bytes"], variant=Variant(**shape))
