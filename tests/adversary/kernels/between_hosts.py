"""All-reduce over nodes that no GPU memory reaches: pinned memory and proxies, or NVSHMEM."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from adversary.kernel import Call
from adversary.kernels.hierarchical import Direct
from adversary.world import Shape, World


class Host(Direct):
    name = "hierarchical_host"
    transport = "tcp"

    def call(self, rng: random.Random, shape: Shape, threads: int, blocks: int) -> Call:
        """A block handles one chunk (Topology.launch_bytes), a thread waits for every node."""
        threads = max(threads, shape.nodes)
        call = super().call(rng, shape, threads, blocks)
        most = threads * blocks * shape.local * shape.per_vector
        return replace(call, count=min(call.count, most))

    def records(self, world: World, rank: int) -> list[Any]:
        return [world.proxies.record(rank)]


class Shmem(Direct):
    name = "hierarchical_nvshmem"
    source = "hierarchical_nvshmem.cu"
    transport = "nvshmem"

    def call(self, rng: random.Random, shape: Shape, threads: int, blocks: int) -> Call:
        return super().call(rng, shape, max(threads, shape.nodes), blocks)

    def records(self, world: World, rank: int) -> list[Any]:
        return [world.shmem.record(rank)]


KERNELS = (Host(), Shmem())
