"""From messages to a prompt: the model's own template, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weft.engine.tokenizer import ByteTokenizer, HubTokenizer, Tokenizer
from weft.serve.errors import ApiError
from weft.serve.protocol import Message


class ChatTemplate:
    """Turns a conversation into token ids.

    The embedded model, which has no files, has plain ``role: text`` lines; a model whose files
    hold no template cannot chat.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> list[int]:
        """Token ids up to where the assistant's answer begins. ApiError for what cannot be.

        ``variables`` of the template's own; those that it does not read change nothing.
        """
        turns = [{"role": message.role, "content": message.text} for message in messages]
        if isinstance(self._tokenizer, ByteTokenizer):
            text = "".join(f"{turn['role']}: {turn['content']}\n" for turn in turns)
            return self._tokenizer.encode(text + "assistant:")
        if not (isinstance(self._tokenizer, HubTokenizer) and self._tokenizer.can_chat):
            raise ApiError(
                400,
                "the model's files have no chat template, so it cannot chat; use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        from jinja2 import TemplateError

        try:
            return self._tokenizer.encode_chat(turns, variables)
        except (TemplateError, TypeError, ValueError) as error:
            raise ApiError(400, f"messages: {error}", param="messages") from None
