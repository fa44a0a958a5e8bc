"""Drafts without a model: what followed the last time that a request's last tokens stood in it.

Source: Saxena, "Prompt Lookup Decoding" (2023); vLLM's ``ngram`` method. Every rank looks up the
same, so nothing is sent.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from weft.engine.request import Request

_LENGTHS: Final = (4, 3, 2)
"""Tokens that must agree, the most telling first."""


class _Index:
    """Where what follows each run of tokens of one request stands, the latest."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._num_seen = 0

    def look_up(self, request: Request, most: int) -> list[int]:
        length = request.length
        for end in range(self._num_seen, length):
            for run in _runs(request, end):
                self._after[run] = end
        self._num_seen = length
        for run in _runs(request, length):
            at = self._after.get(run)
            if at is not None:
                return request.slice(at, min(at + most, length))
        return []


def _runs(request: Request, end: int) -> list[tuple[int, ...]]:
    """The runs of tokens that end before position ``end``, longest first."""
    return [tuple(request.slice(end - size, end)) for size in _LENGTHS if end >= size]


class NgramProposer:
    """At most ``num_drafts`` guesses of a request's next tokens."""

    def __init__(self, num_drafts: int) -> None:
        self._num_drafts = num_drafts
        self._indices: WeakKeyDictionary[Request, _Index] = WeakKeyDictionary()

    def propose(self, request: Request, most: int) -> list[int]:
        """Drafts that may follow the request's last token, all of whose tokens are known."""
        if request.sampling.penalizes:  # a token's logits depend on those before it in the step
            return []
        index = self._indices.setdefault(request, _Index())
        return index.look_up(request, min(most, self._num_drafts))
