"""What ``weft calibrate --device cuda`` found out about this machine, for algorithm="auto"."""

from __future__ import annotations

import torch
import torch.distributed as dist

from weft.allreduce.selection import Selection, select
from weft.errors import WeftError
from weft.fabric.fabric import Fabric
from weft.fabric.local import device_fabric
from weft.kernels.modules import ELEMENTS
from weft.kernels.selection import BACKEND, Topology

Selections = dict[torch.dtype, Selection]


def agreed_selections(group: dist.ProcessGroup, topology: Topology) -> Selections:
    """The first rank's choices by element type, so that all agree; empty: the built-in table.

    Collective. Raises, on all ranks, what was wrong with any rank's fabric file.
    """
    choices: Selections = {}
    problem: WeftError | None = None
    try:
        choices = selections(device_fabric(), topology)
    except WeftError as error:
        problem = error
    answers: list[tuple[Selections, WeftError | None]]
    answers = [({}, None)] * topology.num_ranks
    dist.all_gather_object(answers, (choices, problem), group=group)
    for _, failure in answers:
        if failure is not None:
            raise failure
    return answers[0][0]


def selections(fabric: Fabric | None, topology: Topology) -> Selections:
    """The choices that a fabric's tables of such a group lead to; none without tables."""
    if fabric is None:
        return {}
    ranks, nodes = topology.num_ranks, topology.nodes
    measured = [
        name for name in topology.algorithms if fabric.table(name, ranks=ranks, nodes=nodes)
    ]
    if not measured:
        return {}
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in ELEMENTS}
    known = (BACKEND, *measured)
    return {
        dtype: select(fabric, ranks=ranks, nodes=nodes, dtype=name, available=known, default=())
        for dtype, name in names.items()
    }
