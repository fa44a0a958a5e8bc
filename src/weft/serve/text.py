"""From tokens to text as it grows: whole characters only, nothing past a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from weft.engine.tokenizer import Tokenizer
from weft.errors import WorkloadError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER_TOKENS = 4
_LONGEST_TAIL = 12


class IdTokenizer:
    """For models without tokenizer files: prompts as token ids, answers as their numbers."""

    eos_token_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        raise WorkloadError(
            f"the model has no tokenizer files: send the prompt as token ids, not {text[:20]!r}"
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(f"{token} " for token in token_ids)


class GrowingText:
    """The text of one answer, given out piece by piece.

    A token that ends inside a character is held back until the character is whole. Only a
    short tail of the tokens is decoded, once a token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._tail: list[int] = []
        self._told = ""
        self._num_pending = 0
        self.length = 0
        """Characters given out so far."""

    def add(self, token: int, *, last: bool = False) -> str:
        """The characters that this token completes; all that is left if ``last``."""
        self._tail.append(token)
        self._num_pending += 1
        return self._give(hold_partial=not last and self._num_pending < _LONGEST_CHARACTER_TOKENS)

    def finish(self) -> str:
        """All that is left."""
        return self._give(hold_partial=False) if self._num_pending else ""

    def _give(self, *, hold_partial: bool) -> str:
        text = self.tokenizer.decode(self._tail)
        if hold_partial and text.endswith(_REPLACEMENT):
            return ""
        piece, self._told = text[len(self._told) :], text
        self.length += len(piece)
        if len(self._tail) > _LONGEST_TAIL:
            del self._tail[: -self._num_pending]
            self._told = self.tokenizer.decode(self._tail)
        self._num_pending = 0
        return piece


class StopStrings:
    """Cuts text before the first stop string, across pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def add(self, piece: str, *, last: bool = False) -> str:
        """The text that no stop string can take back any more."""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.hit = True
            self._held = ""
            return text[: min(found)]
        keep = 0 if last or not self._stops else self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
