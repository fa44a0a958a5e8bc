"""From tokens to text as it grows: whole characters only, nothing past a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from weft.engine.tokenizer import Tokenizer
from weft.errors import WorkloadError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER_TOKENS = 4


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
    short tail of the tokens is decoded again at each step.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = 0
        self._given = 0
        self._length = 0
        self.offsets: list[int] = []
        """For each token the characters that were complete before it."""

    def add(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """The characters that these tokens complete; all that is left if ``last``."""
        text = "".join(self._add_one(token) for token in tokens)
        return text + self._give() if last else text

    def _add_one(self, token: int) -> str:
        self._tokens.append(token)
        self.offsets.append(self._length)
        num_pending = len(self._tokens) - self._given
        return self._give(hold_partial=num_pending < _LONGEST_CHARACTER_TOKENS)

    def _give(self, *, hold_partial: bool = False) -> str:
        before = self._tokenizer.decode(self._tokens[self._context : self._given])
        after = self._tokenizer.decode(self._tokens[self._context :])
        if hold_partial and after.endswith(_REPLACEMENT):
            return ""
        self._context, self._given = self._given, len(self._tokens)
        self._length += len(after) - len(before)
        return after[len(before) :]


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
        keep = 0 if last else self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
