"""Hierarchical direct exchange: as the hierarchical one, with a single hop between nodes.

Each rank sends its reduced 1/G to its peer in every other node; all add in node order.
"""

from __future__ import annotations

from weft.allreduce.algorithms.direct import all_gather_step, exchange_step, reduce_scatter_step
from weft.allreduce.program import Program, Topology, slice_of


def program(topology: Topology, count: int, rank: int) -> Program:
    node, rail = topology.node_members(rank), topology.rail_members(rank)
    own = slice_of(node.index(rank), len(node), 0, count)
    return (
        reduce_scatter_step("reduce-scatter in the node", node, rank, (0, count)),
        exchange_step("direct exchange between nodes", rail, rank, own),
        all_gather_step("all-gather in the node", node, rank, (0, count)),
    )
