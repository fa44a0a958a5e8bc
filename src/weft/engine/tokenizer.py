"""Text to token ids and back: transformers' tokenizers, or bytes where a model has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Final, Protocol

from weft.errors import ModelConfigError

_TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    eos_token_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0-255, begin of text 256, end of text 257.

    The built-in tokenizer of the embedded model: no files, any text. Other ids
    decode to the replacement character.
    """

    BOS: Final = 256
    EOS: Final = 257

    def __init__(self) -> None:
        self.eos_token_ids: tuple[int, ...] = (self.EOS,)

    def encode(self, text: str) -> list[int]:
        return [self.BOS, *text.encode()]

    def decode(self, token_ids: Sequence[int]) -> str:
        pieces = bytearray()
        for token in token_ids:
            if token < self.BOS:
                pieces.append(token)
            elif token > self.EOS:
                pieces += "\N{REPLACEMENT CHARACTER}".encode()
        return pieces.decode(errors="replace")


class HubTokenizer:
    """A tokenizer of the transformers library, from the model's directory."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelConfigError(f"{directory}: cannot load its tokenizer ({reason})") from None
        eos = self._tokenizer.eos_token_id
        self.eos_token_ids: tuple[int, ...] = () if eos is None else (eos,)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @property
    def can_chat(self) -> bool:
        """Whether the model's files hold a chat template."""
        return bool(self._tokenizer.chat_template)

    def encode_chat(
        self, turns: Sequence[dict[str, str]], variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation up to where the answer begins, by the model's template.

        ``variables`` are the template's (``enable_thinking`` …). Raises ValueError for one that
        is transformers' own.
        """
        own = signature(self._tokenizer.apply_chat_template).parameters
        if taken := next(
            (name for name in variables or () if name in own or name == "messages"), None
        ):
            raise ValueError(f"{taken} is no variable of the chat template")
        ids = self._tokenizer.apply_chat_template(
            list(turns),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **variables or {},
        )
        return [int(token) for token in ids]

    def piece(self, token_id: int) -> str:
        """The token as the vocabulary writes it; empty for ids outside of it."""
        return str(self._tokenizer.convert_ids_to_tokens(token_id) or "")


def find_tokenizer(directory: Path | None) -> Tokenizer | None:
    """The model's own tokenizer; bytes for models without a directory; None if it has no files."""
    if directory is None:
        return ByteTokenizer()
    if any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return HubTokenizer(directory)
    return None
