"""Request traces of production services: Mooncake JSONL, Azure CSV and BurstGPT CSV.

Mooncake: ``{"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}`` a line,
one hash id a block of 512 prompt tokens. Azure LLM inference 2023/2024: columns TIMESTAMP,
ContextTokens, GeneratedTokens. BurstGPT: columns Timestamp (s), Model, Request tokens,
Response tokens (0 marks a failed request, which is left out), Total tokens, Log Type.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from weft.bench.serving.records import RequestSpec
from weft.errors import FileFormatError

MOONCAKE_BLOCK_TOKENS = 512
_TIME = re.compile(r"(.*?:\d\d:\d\d)(?:\.(\d+))?(.*)")


def read_trace(path: Path) -> list[RequestSpec]:
    """Every usable request of the file, times in seconds; the kind is told by its first line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            specs = list(_reader_for(first, path)(lines))
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"`trace` {path}: cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"`trace` {path}: unreadable request: {error!r}") from None
    if not specs:
        raise FileFormatError(f"`trace` {path}: no requests with at least one token in the file")
    return specs


def _reader_for(first: str, path: Path) -> Callable[[Iterable[str]], Iterable[RequestSpec]]:
    columns = {name.strip().strip('"').lower() for name in first.split(",")}
    if first.lstrip().startswith("{"):
        return _mooncake
    if {"timestamp", "contexttokens", "generatedtokens"} <= columns:
        return _azure
    if {"timestamp", "request tokens", "response tokens"} <= columns:
        return _burstgpt
    raise FileFormatError(
        f"`trace` {path}: first line {first.strip()[:60]!r} is neither Mooncake JSONL, "
        "Azure CSV (TIMESTAMP,ContextTokens,GeneratedTokens) nor BurstGPT CSV"
    )


def _mooncake(lines: Iterable[str]) -> Iterable[RequestSpec]:
    for line in lines:
        if line.strip():
            row = json.loads(line)
            yield from _spec(
                float(row["timestamp"]) / 1e3,
                int(row["input_length"]),
                int(row["output_length"]),
                tuple(int(block) for block in row.get("hash_ids", ())),
            )


def _azure(lines: Iterable[str]) -> Iterable[RequestSpec]:
    for row in csv.DictReader(lines):
        at_s = _timestamp(row["TIMESTAMP"])
        yield from _spec(at_s, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _burstgpt(lines: Iterable[str]) -> Iterable[RequestSpec]:
    for row in csv.DictReader(lines):
        at_s = float(row["Timestamp"])
        yield from _spec(at_s, int(row["Request tokens"]), int(row["Response tokens"]))


def _spec(
    at_s: float, prompt_tokens: int, output_tokens: int, blocks: tuple[int, ...] = ()
) -> Iterable[RequestSpec]:
    if prompt_tokens > 0 and output_tokens > 0:
        yield RequestSpec(
            at_s=at_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens, block_ids=blocks
        )


def _timestamp(text: str) -> float:
    """Seconds of an ISO-like time with any number of decimals."""
    parts = _TIME.fullmatch(text.strip())
    if parts is None:
        raise ValueError(text)
    whole, decimals, zone = parts.groups()
    moment = datetime.fromisoformat(whole + (zone or "+00:00"))
    return moment.timestamp() + float(f"0.{decimals or 0}")
