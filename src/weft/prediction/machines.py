"""Machines by name: accelerator, fabric and engine profile together."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from weft.errors import UserError
from weft.fabric import load as load_fabric
from weft.fabric.fabric import Fabric
from weft.prediction.accelerator import load_accelerator
from weft.prediction.engine_profile import profile_named
from weft.prediction.measured import MeasuredRun, weft_tables
from weft.prediction.prediction import Machine

USUAL_FABRIC: Final = {
    "h200-sxm": "h200-nvlink",
    "h100-sxm": "h100-nvlink-ndr400",
    "a100-80g": "a100-slingshot11",
    "gh200": "gh200-ndr",
}
"""The fabric that a built-in accelerator is taken to have where none is named."""


USUAL_NETWORK: Final = {"h200-sxm": "h100-nvlink-ndr400"}
"""The fabric whose network the nodes have where the usual fabric was measured in one node."""


def machine_named(
    engine: str,
    accelerator: str,
    fabric: str | None = None,
    weights: str | None = None,
    *,
    nodes: int = 1,
) -> Machine:
    """The machine that the names or files describe.

    ``nodes`` above 1 asks for a network between nodes where the usual fabric has none.
    Raises FileFormatError and UserError for what does not exist.
    """
    device = load_accelerator(accelerator)
    if fabric is None and accelerator not in USUAL_FABRIC:
        raise UserError(
            f"--accelerator {accelerator}: say which links it has with --fabric NAME or FILE"
        )
    links = load_fabric(fabric or USUAL_FABRIC[accelerator])
    if fabric is None and nodes > 1 and accelerator in USUAL_NETWORK:
        links = _with_network(links, load_fabric(USUAL_NETWORK[accelerator]))
    profile = profile_named(engine)
    if profile.all_reduce == "weft":
        own = weft_tables(fabric or USUAL_FABRIC[accelerator])
        links = replace(links, tables=(*links.tables, *own))
    return Machine(accelerator=device, fabric=links, profile=profile, weight_dtype=weights)


def _with_network(links: Fabric, network: Fabric) -> Fabric:
    """``links`` inside a node, ``network`` between nodes; what was measured across is dropped."""
    return replace(
        links,
        name=f"{links.name} + network of {network.name}",
        inter=network.inter,
        nics_per_node=network.nics_per_node,
        tables=tuple(table for table in links.tables if table.nodes == 1),
    )


def machine_of_run(run: MeasuredRun, base: Machine | None = None) -> Machine:
    """The machine that a measured run names (``base`` instead, where given), with its all-reduce."""
    machine = base or machine_named(run.engine, run.accelerator, run.fabric)
    if run.all_reduce is None:
        return machine
    profile = replace(machine.profile, all_reduce=run.all_reduce, fused_kernels=0)
    return replace(machine, profile=profile)
