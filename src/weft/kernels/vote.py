"""Ranks that set something up together: all go on, or all give up with the same line."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from weft.errors import EnvironmentUnavailable


def agree(group: dist.ProcessGroup, value: Any, problem: str | None) -> list[Any]:
    """The ``value`` of every rank; EnvironmentUnavailable on all ranks if one has a problem."""
    answers: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(answers, (value, problem), group=group)
    problems = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(answers) if text]
    if problems:
        raise EnvironmentUnavailable("; ".join(problems))
    return [answer for answer, _ in answers]
