"""All-reduce over nodes whose memory is within reach."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from adversary.kernel import AllReduce
from adversary.world import World
from allreduce_reference import Values


def node_sums(inputs: Sequence[Values], world: World) -> list[Values]:
    """The sum of every node, rounded."""
    local = world.shape.local
    return [
        world.sum_in_order(inputs[first : first + local]) for first in range(0, len(inputs), local)
    ]


class Direct(AllReduce):
    name = "hierarchical_direct"
    source = "hierarchical.cu"
    nodes = True

    def records(self, world: World, rank: int) -> list[Any]:
        return [ctypes.c_uint64()]

    def expected(self, inputs: Sequence[Values], world: World) -> Values:
        return world.sum_in_order(node_sums(inputs, world))


class Doubling(Direct):
    name = "hierarchical_doubling"

    def expected(self, inputs: Sequence[Values], world: World) -> Values:
        sums = node_sums(inputs, world)
        paired = 1 << (len(sums).bit_length() - 1)
        for folded in range(paired, len(sums)):
            sums[folded - paired] = world.add(sums[folded - paired], sums[folded])
        while paired > 1:
            sums = [world.add(sums[i], sums[i + 1]) for i in range(0, paired, 2)]
            paired //= 2
        return sums[0]


KERNELS = (Direct(), Doubling())
