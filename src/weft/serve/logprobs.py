"""Log-probabilities in the two forms of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from weft.engine.request import TokenLogprobs
from weft.serve.token_text import TokenTexts


@dataclass(frozen=True)
class ShownToken:
    """A token of the answer with its log-probabilities, which the first of a prompt has not."""

    token_id: int
    logprobs: TokenLogprobs | None
    text_offset: int
    """Characters of the tokens before it."""


def completion_logprobs(tokens: Sequence[ShownToken], texts: TokenTexts) -> dict[str, Any]:
    """``logprobs`` of a completion choice: four lists with one entry a token.

    The sampled token is among its own likeliest ones, as OpenAI has it.
    """
    names = [texts[one.token_id].name for one in tokens]
    return {
        "tokens": names,
        "token_logprobs": [one.logprobs and one.logprobs.logprob for one in tokens],
        "top_logprobs": [
            one.logprobs
            and {texts[token].name: value for token, value in one.logprobs.top}
            | {name: one.logprobs.logprob}
            for name, one in zip(names, tokens, strict=True)
        ],
        "text_offset": [one.text_offset for one in tokens],
    }


def prompt_logprobs(
    prompt: Sequence[int], found: Sequence[TokenLogprobs], texts: TokenTexts
) -> list[dict[str, Any] | None]:
    """``prompt_logprobs`` in vLLM's form: one entry a token, by token id; null for the first.

    ``rank`` is known of the likeliest tokens that were asked for, and null of others.
    """
    return [None, *map(partial(_by_id, texts), prompt[1:], found)]


def _by_id(texts: TokenTexts, token: int, found: TokenLogprobs) -> dict[str, Any]:
    ranked: list[tuple[int, float, int | None]] = [
        (one, value, place) for place, (one, value) in enumerate(found.top, 1)
    ]
    if all(one != token for one, _, _ in ranked):
        ranked.append((token, found.logprob, None))
    return {
        str(one): {"logprob": value, "rank": rank, "decoded_token": texts[one].name}
        for one, value, rank in ranked
    }


def chat_logprobs(tokens: Sequence[ShownToken], texts: TokenTexts) -> dict[str, Any]:
    """``logprobs`` of a chat choice."""
    return {
        "content": [
            _chat_token(one.token_id, one.logprobs.logprob, texts)
            | {"top_logprobs": [_chat_token(*pair, texts) for pair in one.logprobs.top]}
            for one in tokens
            if one.logprobs is not None
        ],
        "refusal": None,
    }


def _chat_token(token: int, logprob: float, texts: TokenTexts) -> dict[str, Any]:
    text = texts[token]
    data = None if text.data is None else list(text.data)
    return {"token": text.name, "logprob": logprob, "bytes": data}
