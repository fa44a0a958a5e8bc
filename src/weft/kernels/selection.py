"""Which kernel, with which launch shape, for a message: decided once a size, not in a call.

The tables were measured (see docs/kernels.md); a message above the last row goes to the
backend's own all-reduce, which is faster there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weft.errors import UserError

FLAT = ("one_shot", "two_shot")
HIERARCHICAL = ("hierarchical_direct", "hierarchical_doubling")
HOST = "hierarchical_host"
BACKEND = "backend"
VECTOR_BYTES = 16
MAX_BLOCKS = 512  # kMaxBlocks of comm.cuh

KIB = 1024
MIB = 1024 * KIB


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


def _rule(max_bytes: int, algorithm: str, threads: int) -> Rule:
    blocks = 400 if threads == 1024 else 264
    variant = Variant(algorithm=algorithm, threads=threads, max_blocks=blocks)
    return Rule(max_bytes=max_bytes, variant=variant)


RULES_2 = (
    _rule(128 * KIB, "one_shot", 128),
    _rule(1 * MIB, "one_shot", 256),
    _rule(2 * MIB, "one_shot", 512),
    _rule(64 * MIB, "one_shot", 1024),
)
RULES_4 = (
    _rule(256 * KIB, "one_shot", 128),
    _rule(512 * KIB, "two_shot", 128),
    _rule(1 * MIB, "two_shot", 64),
    _rule(4 * MIB, "two_shot", 256),
    _rule(8 * MIB, "two_shot", 512),
    _rule(64 * MIB, "two_shot", 1024),
)
RULES_8 = (
    _rule(64 * KIB, "one_shot", 128),
    _rule(2 * MIB, "two_shot", 128),
    _rule(16 * MIB, "two_shot", 512),
)
RULES_HIERARCHICAL = (
    _rule(1 * MIB, "hierarchical_direct", 128),
    _rule(64 * MIB, "hierarchical_direct", 512),
    _rule(1 * MIB, "hierarchical_doubling", 128),
    _rule(64 * MIB, "hierarchical_doubling", 512),
)
RULES_HOST = (_rule(8 * MIB, HOST, 512),)


@dataclass(frozen=True, kw_only=True)
class Topology:
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
        if self.transport != "peer":
            return (HOST,)
        return FLAT if self.nodes == 1 else (*FLAT, *HIERARCHICAL)

    def sharing(self, algorithm: str) -> int:
        """Between how many ranks an algorithm splits a message."""
        if algorithm == "one_shot":
            return 1
        return self.num_ranks if algorithm == "two_shot" else self.ranks_per_node

    def needs(self, algorithm: str, num_bytes: int) -> int:
        """Bytes of mailbox that a message takes at every rank."""
        sharing = self.sharing(algorithm)
        part = -(-num_vectors(num_bytes) // sharing) * VECTOR_BYTES
        if algorithm == "one_shot":
            return part * self.num_ranks
        if algorithm in HIERARCHICAL:
            return part * (2 * sharing + max(self.nodes, 5))
        return part * 2 * sharing

    def rules(self) -> Sequence[Rule]:
        """Every rule that can apply; "auto" reads the first of them, see choose()."""
        if self.transport != "peer":
            return RULES_HOST
        flat = rules(self.num_ranks)
        return flat if self.nodes == 1 else (*flat, *RULES_HIERARCHICAL)


def rules(num_ranks: int) -> tuple[Rule, ...]:
    """The flat table of a group size; sizes that were not measured use the next larger one."""
    if num_ranks <= 2:
        return RULES_2
    return RULES_4 if num_ranks <= 4 else RULES_8


def choose(
    topology: Topology, num_bytes: int, algorithm: str, capacity_bytes: int
) -> Variant | None:
    """The variant for a message, or None for the backend's own all-reduce.

    ``algorithm`` is "auto", "backend" or one of the topology's; ``capacity_bytes`` is the size
    of one mailbox. UserError names an unknown algorithm or a message that does not fit.
    """
    if algorithm == BACKEND:
        return None
    if algorithm == "auto":
        return _automatic(topology, num_bytes, capacity_bytes)
    if algorithm not in topology.algorithms:
        known = ", ".join(("auto", BACKEND, *topology.algorithms))
        raise UserError(f"unknown all-reduce algorithm {algorithm!r}; known here: {known}")
    same = [rule for rule in topology.rules() if rule.variant.algorithm == algorithm]
    default = same[-1].variant if same else Variant(algorithm=algorithm, threads=256)
    variant = next((rule.variant for rule in same if num_bytes <= rule.max_bytes), default)
    if topology.needs(algorithm, num_bytes) > capacity_bytes:
        raise UserError(
            f"a message of {num_bytes} bytes does not fit {algorithm} with "
            f"{topology.num_ranks} ranks: {capacity_bytes} bytes of mailbox; raise max_bytes of "
            "the communicator"
        )
    return variant


def capacity(topology: Topology, max_bytes: int) -> int:
    """Mailbox bytes so that messages of up to ``max_bytes`` fit what "auto" chooses for them.

    Every algorithm but one-shot, whose need grows with the ranks, can then be asked for by name.
    """
    sizes = {max_bytes, *(rule.max_bytes for rule in topology.rules())}
    chosen = ((size, _automatic(topology, size, 1 << 62)) for size in sizes if size <= max_bytes)
    needed = [topology.needs(variant.algorithm, size) for size, variant in chosen if variant]
    named = (name for name in topology.algorithms if name != "one_shot")
    needed += [topology.needs(name, max_bytes) for name in named]
    return -(-(max(needed) + 4 * topology.num_ranks * VECTOR_BYTES) // 4096) * 4096


def num_vectors(num_bytes: int) -> int:
    """16-byte vectors that hold ``num_bytes``."""
    return -(-num_bytes // VECTOR_BYTES)


def _automatic(topology: Topology, num_bytes: int, capacity_bytes: int) -> Variant | None:
    variant = next((r.variant for r in topology.rules() if num_bytes <= r.max_bytes), None)
    if variant is None or topology.needs(variant.algorithm, num_bytes) > capacity_bytes:
        return None
    return variant
