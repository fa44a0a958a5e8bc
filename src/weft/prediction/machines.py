"""Machines by name: accelerator, fabric and engine profile together."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from weft.errors import UserError
from weft.fabric import load as load_fabric
from weft.prediction.accelerator import Accelerator, load_accelerator
from weft.prediction.engine_profile import EngineProfile, profile_named
from weft.prediction.own_tables import weft_tables
from weft.prediction.prediction import Machine
from weft.vocabulary.layout import Layout

USUAL_FABRIC: Final = {
    "h200-sxm": "hgx-h200",
    "h100-sxm": "hgx-h100",
    "a100-80g": "hgx-a100",
    "gh200": "gh200-ndr",
    "b200-sxm": "hgx-b200",
    "b300-sxm": "hgx-b200",
    "gb200": "nvl72",
    "gb300": "nvl72",
    "h20": "hgx-h200",
    "l40s": "pcie4-x8",
    "rtx-5090": "pcie5-x8",
    "mi300x": "mi300x-x8",
    "mi355x": "mi355x-x8",
}
"""The fabric that a built-in accelerator is taken to have where none is named."""


def machine_named(
    engine: str | EngineProfile,
    accelerator: str | Accelerator,
    fabric: str | None = None,
    weights: str | None = None,
    cache_dtype: str | None = None,
) -> Machine:
    """The machine that the names or files describe; engine and accelerator may be values, too.

    Raises FileFormatError and UserError for what does not exist.
    """
    device, name = (
        (load_accelerator(accelerator), accelerator)
        if isinstance(accelerator, str)
        else (accelerator, accelerator.name)
    )
    if fabric is None and name not in USUAL_FABRIC:
        raise UserError(f"`accelerator` {name}: say which links it has with `fabric` NAME or FILE")
    if fabric is None:
        fabric = USUAL_FABRIC[name]
    links = load_fabric(fabric)
    profile = profile_named(engine) if isinstance(engine, str) else engine
    if profile.all_reduce == "weft":
        own = weft_tables(fabric)
        links = replace(links, tables=(*links.tables, *own))
    return Machine(
        accelerator=device,
        fabric=links,
        profile=profile,
        weight_dtype=weights,
        cache_dtype=cache_dtype,
    )


def placed(layout: Layout, gpus_per_node: int, nodes: int | None = None) -> Layout:
    """``layout`` on ``nodes`` machines, or on as few as ``gpus_per_node`` allow."""
    found = max(1, -(-layout.world_size // gpus_per_node)) if nodes is None else nodes
    return layout if layout.nodes == found else replace(layout, nodes=found)
