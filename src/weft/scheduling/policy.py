"""Which rows of a step go to which prompt: one rule for the engine and for its simulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weft.errors import WorkloadError

Admission = Literal["present", "whole"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How an engine fills a step.

    max_tokens: rows of one step; max_requests: requests that run at once (one step's).
    counts_decode: decoding requests' rows are part of ``max_tokens`` (else they stand beside it).
    mixes: prompts and decoding requests share a step (else prompts have steps of their own).
    chunks: a prompt that does not fit is cut (else it waits for a step with room for all of it).
    admission: a request enters when its prompt fits the cache (``present``; it may be preempted
    later), or only when its answer does too (``whole``).
    steps_ahead: steps that are filled before the results of those in front are known.
    """

    max_tokens: int
    max_requests: int
    counts_decode: bool = True
    mixes: bool = True
    chunks: bool = True
    admission: Admission = "present"
    steps_ahead: int = 0

    def __post_init__(self) -> None:
        for option, value in (
            ("`max_tokens`", self.max_tokens),
            ("`max_requests`", self.max_requests),
        ):
            if value < 1:
                raise WorkloadError(f"{option} {value}: must be at least 1")

    def prompt_rows(self, num_decoding: int) -> int:
        """Rows that prompts may have beside ``num_decoding`` requests."""
        if self.mixes and self.counts_decode:
            return max(0, self.max_tokens - num_decoding)
        return self.max_tokens

    def rows_for(self, tokens: int, rows: int, *, alone: bool) -> int:
        """Rows of a prompt with ``tokens`` left where ``rows`` are free; ``alone``: no other yet.

        A prompt that is longer than any step is cut in every engine.
        """
        if tokens <= rows or self.chunks or (alone and tokens > self.max_tokens):
            return min(tokens, rows)
        return 0
