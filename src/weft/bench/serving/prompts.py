"""The text or token ids of each request, made from a seed: equal seeds, equal prompts."""

from __future__ import annotations

import random

from weft.bench.serving.records import RequestSpec
from weft.bench.serving.trace_files import MOONCAKE_BLOCK_TOKENS

_WORDS = ("time", "year", "people", "way", "day", "thing", "life", "child", "world", "school")


def prompt_words(spec: RequestSpec, index: int, seed: int) -> str:
    """About ``prompt_tokens`` tokens of English: one common word a token."""
    return " ".join(_WORDS[number % len(_WORDS)] for number in _numbers(spec, index, seed))


def prompt_token_ids(spec: RequestSpec, index: int, seed: int, vocab_size: int) -> list[int]:
    """Exactly ``prompt_tokens`` ids below ``vocab_size``."""
    return [number % vocab_size for number in _numbers(spec, index, seed)]


def _numbers(spec: RequestSpec, index: int, seed: int) -> list[int]:
    """One random number a prompt token; equal block ids give equal blocks."""
    if not spec.block_ids:
        return _draw(f"{seed}/{index}", spec.prompt_tokens)
    numbers: list[int] = []
    for block in spec.block_ids:
        numbers += _draw(f"{seed}/block/{block}", MOONCAKE_BLOCK_TOKENS)
    missing = spec.prompt_tokens - len(numbers)
    return (numbers + _draw(f"{seed}/{index}", max(missing, 0)))[: spec.prompt_tokens]


def _draw(key: str, count: int) -> list[int]:
    generator = random.Random(key)  # noqa: S311
    return [generator.getrandbits(31) for _ in range(count)]
