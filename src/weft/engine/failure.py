"""When a step's work fails: what the ranks survive together, and what ends the engine.

A rank that fails goes on sending what its peers wait for, with no numbers in it (NaN). Rows
without numbers give no token, whichever rank they come from, so that all ranks end the same
requests at the same step. Ranks of one stage exchange inside their work: they must have failed
alike; one that failed alone cannot meet the others again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

import torch

from weft.comm.groups import ProcessGroups
from weft.engine.scheduler import Chunk
from weft.errors import CommunicationError, LoneFailureError

FATAL: Final = (CommunicationError, torch.AcceleratorError)
"""The ranks or the device are lost."""
_AGREE_S: Final = 10.0

Result = TypeVar("Result")


def describe(error: Exception) -> str:
    return f"a step failed: {type(error).__name__}: {error}"


class Attempt(Protocol):
    """Does one rank's work for the requests of ``chunks``; None if it fails and they are marked."""

    def __call__(self, chunks: Sequence[Chunk], work: Callable[[], Result], /) -> Result | None: ...


class Attempts:
    """Runs one rank's work and marks the requests of what fails."""

    def __init__(self, groups: ProcessGroups) -> None:
        self._groups = groups

    def attempt(self, chunks: Sequence[Chunk], work: Callable[[], Result]) -> Result | None:
        """The result of ``work``; None, and an error in every request of ``chunks``, if it fails.

        Raises LoneFailureError where this rank failed alone.
        """
        try:
            return work()
        except FATAL:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the peers must not wait for it
            self._agree(error)
            for chunk in chunks:
                chunk.request.error = chunk.request.error or describe(error)
        return None

    def _agree(self, error: Exception) -> None:
        peers = max(self._groups.tp, self._groups.ep, key=lambda group: group.size)
        if not self._groups.all_arrive("failure", peers.ranks, _AGREE_S):
            raise LoneFailureError(
                f"rank {self._groups.rank} failed alone, {describe(error)}"
            ) from error
