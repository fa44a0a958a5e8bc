"""Conventions: how an engine moves what must move between ranks.

Engines run the same decoder with different communication around it. The choices
are few, so they are a value: the closed form reads it to write the schedule down,
and weft's own engine reads it to run that way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from weft.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """One engine's choices.

    boundary_tensors: tensors of [tokens, hidden] that cross a pipeline boundary
        (2: hidden states and residual apart; 1: their sum).
    boundary_sliced: with tensor parallelism each rank sends its 1/tp slice and the
        receiving group gathers it; otherwise every rank sends the whole tensor.
    logits: ``gather`` to the first tensor-parallel rank, ``all_gather`` to all, or
        ``candidates``: an all-gather of each rank's best (value, token id) pair.
    sampled_ids: how the last pipeline stage tells the others: ``host`` (outside the
        collectives), ``broadcast`` (one tensor of int64 ids), or ``broadcast_async``
        (int64 ids and a pair of int32, as vLLM's asynchronous scheduler sends).
    """

    name: str
    boundary_tensors: Literal[1, 2]
    boundary_sliced: bool
    logits: Literal["gather", "all_gather", "candidates"]
    sampled_ids: Literal["host", "broadcast", "broadcast_async"]


ENGINES: Final = {
    "weft": Conventions(
        name="weft",
        boundary_tensors=1,
        boundary_sliced=True,
        logits="candidates",
        sampled_ids="broadcast",
    ),
    "vllm": Conventions(
        name="vllm",
        boundary_tensors=2,
        boundary_sliced=True,
        logits="all_gather",
        sampled_ids="broadcast_async",
    ),
    "vllm-v0": Conventions(
        name="vllm-v0",
        boundary_tensors=2,
        boundary_sliced=True,
        logits="gather",
        sampled_ids="host",
    ),
    "vllm-cpu": Conventions(
        name="vllm-cpu",
        boundary_tensors=2,
        boundary_sliced=False,
        logits="all_gather",
        sampled_ids="host",
    ),
}


def engine_named(name: str) -> Conventions:
    """The conventions of the named engine, or a UserError that lists the names."""
    try:
        return ENGINES[name]
    except KeyError:
        raise UserError(f"--engine {name}: unknown; choose one of {', '.join(ENGINES)}") from None
