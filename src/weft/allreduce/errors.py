"""Errors that every transport of the all-reduce raises in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from weft.errors import LostRankError, UserError


class UnknownAlgorithmError(UserError):
    """An all-reduce algorithm that weft does not have."""


class MismatchError(UserError):
    """The ranks of a group passed different shapes or types to one all-reduce."""


def lost_rank_error(rank: int, missing: Sequence[int], step: str, epoch: int) -> LostRankError:
    """The error of rank ``rank`` that waited in vain."""
    names = ", ".join(map(str, missing))
    return LostRankError(
        f"lost rank {names} in step {step!r} of all-reduce call {epoch}: rank {rank} waited in vain"
    )
