"""Machines by name: accelerator, fabric and engine profile together."""

from __future__ import annotations

from typing import Final

from weft.errors import UserError
from weft.fabric import load as load_fabric
from weft.prediction.accelerator import load_accelerator
from weft.prediction.engine_profile import profile_named
from weft.prediction.prediction import Machine

USUAL_FABRIC: Final = {
    "h200-sxm": "h200-nvlink",
    "h100-sxm": "h100-nvlink-ndr400",
    "a100-80g": "a100-slingshot11",
    "gh200": "gh200-ndr",
}
"""The fabric that a built-in accelerator is taken to have where none is named."""


def machine_named(
    engine: str, accelerator: str, fabric: str | None = None, weights: str | None = None
) -> Machine:
    """The machine that the names or files describe.

    Raises FileFormatError and UserError for what does not exist.
    """
    device = load_accelerator(accelerator)
    if fabric is None and accelerator not in USUAL_FABRIC:
        raise UserError(
            f"--accelerator {accelerator}: say which links it has with --fabric NAME or FILE"
        )
    return Machine(
        accelerator=device,
        fabric=load_fabric(fabric or USUAL_FABRIC[accelerator]),
        profile=profile_named(engine),
        weight_dtype=weights,
    )
