r"""Single tokens as the text and the bytes that log-probabilities show.

A token can be a part of a character, so its own text is not always text: then it is named by
its bytes (``bytes:\xe2\x82``), and a token that stands for no bytes by its id (``token_id:7``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from weft.engine.tokenizer import ByteTokenizer, HubTokenizer, Tokenizer

_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, kw_only=True)
class TokenText:
    """A token's name, and its bytes where it stands for some."""

    name: str
    data: bytes | None


@dataclass(kw_only=True)
class TokenTexts:
    """Tokens of one tokenizer; each is looked at once."""

    tokenizer: Tokenizer
    _known: dict[int, TokenText] = field(default_factory=dict)
    _anchor: list[int] | None = None

    def __getitem__(self, token: int) -> TokenText:
        known = self._known.get(token)
        if known is None:
            data = self._bytes_of(token) or None
            known = self._known[token] = TokenText(name=_name(token, data), data=data)
        return known

    def _bytes_of(self, token: int) -> bytes:
        tokenizer = self.tokenizer
        if isinstance(tokenizer, ByteTokenizer):
            return bytes([token]) if token < tokenizer.BOS else b""
        piece = tokenizer.piece(token) if isinstance(tokenizer, HubTokenizer) else ""
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        text = self._text_after_anchor(token)
        if _REPLACEMENT in text:
            return _bytes_of_piece(piece) or text.encode()
        return text.encode()

    def _text_after_anchor(self, token: int) -> str:
        """The token's text behind another one: at the very front a space may be dropped."""
        if self._anchor is None:
            is_hub = isinstance(self.tokenizer, HubTokenizer)
            self._anchor = self.tokenizer.encode("a")[-1:] if is_hub else []
        before = self.tokenizer.decode(self._anchor)
        return self.tokenizer.decode([*self._anchor, token])[len(before) :]


def _name(token: int, data: bytes | None) -> str:
    if data is None:
        return f"token_id:{token}"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _bytes_of_piece(piece: str) -> bytes:
    """The bytes of a byte-level BPE piece; empty where it is none."""
    table = _BYTES_OF_CHARACTERS
    return bytes(table[one] for one in piece) if all(one in table for one in piece) else b""


def _byte_level_table() -> dict[str, int]:
    """Byte-level BPE writes printable Latin-1 bytes as themselves, the rest from U+0100 on."""
    plain: Sequence[int] = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + place): byte for place, byte in enumerate(rest)
    }


_BYTES_OF_CHARACTERS: Final = _byte_level_table()
