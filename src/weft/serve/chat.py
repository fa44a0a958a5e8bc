"""From messages to a prompt: the model's own template, or plain turns where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weft.engine.tokenizer import Tokenizer
from weft.serve.errors import ApiError
from weft.serve.protocol import Message


class ChatTemplate:
    """Turns a conversation into token ids."""

    def __init__(self, tokenizer: Tokenizer, directory: Path | None) -> None:
        self._tokenizer = tokenizer
        self._template = _own_template(directory)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the assistant's answer begins. ApiError for what cannot be."""
        turns = [{"role": message.role, "content": message.text} for message in messages]
        if self._template is None:
            text = "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns)
            return self._tokenizer.encode(text + "assistant:")
        from jinja2 import TemplateError

        try:
            ids = self._template.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ApiError(400, f"messages: {error}", param="messages") from None
        return [int(token) for token in ids]


def _own_template(directory: Path | None) -> Any:
    """The model's tokenizer where it carries a chat template."""
    if directory is None or not (directory / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    return tokenizer if tokenizer.chat_template else None
