"""A step's logits, nothing chosen."""

from __future__ import annotations

import torch

from weft.engine.engine import Engine
from weft.engine.step import Step


def stage_logits(engine: Engine, step: Step) -> torch.Tensor | None:
    """This rank's logits [N, ceil(v/t)] on the last stage, None on the others."""
    output = engine.runner.forward(step, engine.runner.receive(step), eager=True)
    if output.boundary is not None:
        engine.runner.send(output.boundary)
    return output.logits
