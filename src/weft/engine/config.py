"""EngineConfig: what an engine is built with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weft.errors import UserError

Weights = Literal["auto", "dummy"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What an engine is built with.

    conventions: whose communication to follow (see vocabulary/conventions.py);
    weights: ``auto`` reads the checkpoint where the model has one, ``dummy`` never;
    dtype: instead of the model's own; seed: of dummy weights and unseeded sampling;
    cache_tokens: positions in the key-value cache (default: 8192 on the CPU, on a GPU what
    fits into ``memory_share`` of its memory), handed out in blocks of ``block_size`` (16; 64
    for the kernels of a GPU); max_batch_*: limits of one step (tokens of prompts, requests);
    overlap: launch the next step before the ids of the one in front are read (default: on
    a GPU); graphs: decode steps as CUDA graphs, for batches of the sizes ``graph_batches``
    (default: where they can be).
    """

    conventions: str = "weft"
    weights: Weights = "auto"
    dtype: str | None = None
    seed: int = 0
    cache_tokens: int | None = None
    memory_share: float = 0.9
    block_size: int | None = None
    max_batch_tokens: int = 8192
    max_batch_requests: int = 256
    overlap: bool | None = None
    graphs: bool | None = None
    graph_batches: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.memory_share <= 1:
            raise UserError(f"--memory-share {self.memory_share}: must be above 0 and at most 1")
