"""Prompts of real conversations: ShareGPT's JSON, and JSON lines of prompts or messages.

ShareGPT: a list of ``{"conversations": [{"from": "human", "value": …}, {"from": "gpt", …}, …]}``; the
first question and its answer are taken. JSON lines: ``{"prompt": …}``, ``{"text": …}`` or
``{"messages": [{"content": …}, …]}`` (the last), each with an ``output_tokens`` of its own if it has
one. Lengths are estimated at four tokens for three words; the server's count is what results tell.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.bench.serving.records import RequestSpec
from weft.errors import FileFormatError

_LEAST_TOKENS = 4


def read_prompts(
    path: Path, output_tokens: int | None, count: int | None, seed: int
) -> list[RequestSpec]:
    """``count`` requests drawn from the file (all, in its order, where None), repeated if it is short.

    ``output_tokens``: of every answer; None takes what the file says, or the recorded answer's.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
        specs = [spec for row in rows if (spec := _spec(row, output_tokens)) is not None]
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"`prompts` {path}: cannot be read: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"`prompts` {path}: unreadable prompt: {error!r}") from None
    if not specs:
        raise FileFormatError(f"`prompts` {path}: no prompt of at least {_LEAST_TOKENS} tokens")
    if count is None:
        return specs
    generator = random.Random(seed)  # noqa: S311 - not a secret
    whole, rest = divmod(count, len(specs))
    return specs * whole + generator.sample(specs, rest)


def _lines(text: str) -> Iterator[Any]:
    return (json.loads(line) for line in text.splitlines() if line.strip())


def _spec(row: Any, output_tokens: int | None) -> RequestSpec | None:
    prompt, answer = _prompt_and_answer(row)
    own = row.get("output_tokens") or row.get("max_tokens") or (_tokens(answer) if answer else None)
    wanted = output_tokens or own
    if wanted is None:
        raise FileFormatError("`prompts`: neither an answer nor its length; give `output_tokens`")
    if not isinstance(wanted, int) or wanted < 1 or _tokens(prompt) < _LEAST_TOKENS:
        return None
    return RequestSpec(prompt_tokens=_tokens(prompt), output_tokens=wanted, text=prompt)


def _prompt_and_answer(row: Any) -> tuple[str, str | None]:
    turns = row.get("conversations") or ()
    if turns:
        said = [str(turn["value"]) for turn in turns[:2]]
        return said[0], said[1] if len(said) > 1 else None
    if "messages" in row:
        return str(row["messages"][-1]["content"]), None
    return str(row["prompt"] if "prompt" in row else row["text"]), None


def _tokens(text: str) -> int:
    return -(-4 * len(text.split()) // 3)
