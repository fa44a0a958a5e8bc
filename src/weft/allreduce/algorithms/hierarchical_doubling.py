"""Hierarchical recursive doubling: reduce-scatter in the node, doubling between, all-gather.

The idea is NVRAR's (Singhania et al.): between nodes each rank exchanges only its 1/G of
the message with the ranks of its own place in the other nodes.
"""

from __future__ import annotations

from weft.allreduce.algorithms.direct import all_gather_step, reduce_scatter_step
from weft.allreduce.algorithms.recursive_doubling import doubling_steps
from weft.allreduce.program import Program, Topology, slice_of


def program(topology: Topology, count: int, rank: int) -> Program:
    node, rail = topology.node_members(rank), topology.rail_members(rank)
    own = slice_of(node.index(rank), len(node), 0, count)
    return (
        reduce_scatter_step("reduce-scatter in the node", node, rank, (0, count)),
        *doubling_steps("recursive doubling between nodes", rail, rank, own),
        all_gather_step("all-gather in the node", node, rank, (0, count)),
    )
