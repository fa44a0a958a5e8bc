"""All-reduce in one NVLink domain."""

from __future__ import annotations

from collections.abc import Sequence

from adversary.kernel import AllReduce
from adversary.world import World
from allreduce_reference import Values


class OneShot(AllReduce):
    name = "one_shot"
    source = "all_reduce.cu"

    def expected(self, inputs: Sequence[Values], world: World) -> Values:
        return world.sum_in_order(inputs)


class TwoShot(OneShot):
    name = "two_shot"


KERNELS = (OneShot(), TwoShot())
