"""Random loads for the engine, and what must come out: each request's own one-by-one output.

A case is a small engine and requests that arrive, are aborted, stop, are preempted and
recomputed in chunks. Any engine can be driven by :func:`play`; :class:`Alone` is the reference.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from weft.engine.engine import Engine
from weft.engine.request import Request, SamplingParams

VOCAB_SIZE = 61
LONGEST_PROMPT, MOST_TOKENS = 22, 14
_STEMS = [
    [random.Random(stem).randrange(VOCAB_SIZE) for _ in range(LONGEST_PROMPT)] for stem in range(3)
]
_STEMS += [[random.Random(stem).choice((5, 9)) for _ in range(LONGEST_PROMPT)] for stem in range(2)]
_STEMS += [[(7, 8, 9)[place % 3] for place in range(LONGEST_PROMPT)]]
_STYLES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 1.5, "seed": 2},
    {"temperature": 0.9, "seed": 3, "top_k": 7, "top_p": 0.9},
    {"temperature": 1.1, "seed": 4, "min_p": 0.2, "logit_bias": ((5, 3.0),)},
    {"repetition_penalty": 1.3, "presence_penalty": 0.6, "frequency_penalty": 0.9},
    {"temperature": 1.0, "seed": 5, "frequency_penalty": 1.5, "repetition_penalty": 0.8},
)
_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 64,
    "torch_dtype": "float32",
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request that arrives before step ``at`` and is aborted ``abort_after`` steps later.

    stop: which of its own tokens is made a stop token.
    """

    stem: int
    length: int
    max_tokens: int
    style: int = 0
    at: int = 0
    stop: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    abort_after: int | None = None

    @property
    def prompt(self) -> list[int]:
        return _STEMS[self.stem][: self.length]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An engine's limits and what is asked of it. spare: cache positions beyond the longest ask."""

    asks: tuple[Ask, ...]
    spare: int = 0
    block_size: int = 1
    max_batch_tokens: int = 8
    max_batch_requests: int = 4
    overlap: bool = False
    prefix_caching: bool = True
    speculate: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        longest = max(ask.length + ask.max_tokens for ask in self.asks)
        return {
            "cache_tokens": longest + self.spare,
            "block_size": self.block_size,
            "max_batch_tokens": self.max_batch_tokens,
            "max_batch_requests": self.max_batch_requests,
            "overlap": self.overlap and self.speculate is None,
            "speculate": self.speculate,
            "prefix_caching": self.prefix_caching,
            "weights": "dummy",
        }


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """An ask, ready for an engine that knows nothing of stems and styles."""

    at: int
    abort_at: int | None
    prompt: list[int]
    sampling: SamplingParams


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a request."""

    tokens: tuple[int, ...]
    finish_reason: str | None
    logprobs: tuple[float, ...]
    prompt_logprobs: tuple[float, ...]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    asks = st.builds(
        Ask,
        stem=st.integers(0, len(_STEMS) - 1),
        length=st.integers(1, 8) | st.integers(1, LONGEST_PROMPT),
        max_tokens=st.integers(1, MOST_TOKENS) | st.just(MOST_TOKENS),
        style=st.integers(0, len(_STYLES) - 1),
        at=st.integers(0, 3) | st.integers(0, 12),
        stop=st.none() | st.integers(0, MOST_TOKENS - 1),
        logprobs=st.none() | st.none() | st.integers(0, 3),
        prompt_logprobs=st.none() | st.none() | st.none() | st.integers(0, 3),
        abort_after=st.none() | st.none() | st.none() | st.integers(0, 20),
    )
    return Case(
        asks=tuple(draw(st.lists(asks, min_size=1, max_size=7))),
        spare=draw(st.integers(0, 6) | st.integers(0, 60)),
        block_size=draw(st.sampled_from([1, 2, 3, 4, 8, 16])),
        max_batch_tokens=draw(st.integers(1, 2) | st.integers(1, 5) | st.integers(1, 24)),
        max_batch_requests=draw(st.integers(2, 5) | st.integers(1, 5)),
        overlap=draw(st.booleans()),
        prefix_caching=draw(st.booleans()),
        speculate=draw(st.sampled_from([None, "ngram:1", "ngram:3", "ngram:9"])),
    )


def write_model(directory: Path, **config: Any) -> str:
    (directory / "config.json").write_text(json.dumps(_CONFIG | config))
    return str(directory)


def play(engine: Engine, arrivals: list[Arrival]) -> list[Outcome]:
    """Drive the engine until all is done; AssertionError where it keeps a block or a row."""
    requests: dict[int, Request] = {}
    for step in range(5000):
        for number, one in enumerate(arrivals):
            if one.at == step:
                requests[number] = engine.add(number, one.prompt, one.sampling)
            if one.abort_at == step:
                engine.abort(number)
        if len(requests) == len(arrivals) and not engine.has_work:
            break
        engine.step()
    assert not engine.has_work, "the engine goes on for ever"
    scheduler = engine.scheduler
    assert scheduler.pool.num_free == scheduler.pool.num_blocks - 1, "a block was kept"
    limit = engine.config.max_batch_requests * scheduler.num_groups
    assert sorted(scheduler._rows) == list(range(limit)), "a row was kept"
    return [
        Outcome(
            tokens=tuple(request.output),
            finish_reason=request.finish_reason,
            logprobs=tuple(token.logprob for token in request.logprobs),
            prompt_logprobs=tuple(token.logprob for token in request.prompt_logprobs),
        )
        for _, request in sorted(requests.items())
    ]


class Alone:
    """The reference: an engine that has never more than one request, in one chunk."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._known = engine, dict[tuple[Any, ...], Outcome]()

    def outcome(self, ask: Ask) -> Outcome:
        """As many tokens as any ask may want, and no stop."""
        key = (ask.stem, ask.length, ask.style)
        if key not in self._known:
            sampling = SamplingParams(
                max_tokens=MOST_TOKENS,
                ignore_eos=True,
                logprobs=3,
                prompt_logprobs=0,
                **_STYLES[ask.style],
            )
            arrival = Arrival(at=0, abort_at=None, prompt=ask.prompt, sampling=sampling)
            (self._known[key],) = play(self._engine, [arrival])
        return self._known[key]

    def arrival(self, ask: Ask) -> Arrival:
        tokens = self.outcome(ask).tokens
        sampling = SamplingParams(
            max_tokens=ask.max_tokens,
            ignore_eos=True,
            stop_token_ids=() if ask.stop is None else (tokens[ask.stop],),
            logprobs=ask.logprobs,
            prompt_logprobs=ask.prompt_logprobs,
            **_STYLES[ask.style],
        )
        abort_at = None if ask.abort_after is None else ask.at + ask.abort_after
        return Arrival(at=ask.at, abort_at=abort_at, prompt=ask.prompt, sampling=sampling)

    def difference(self, ask: Ask, got: Outcome) -> str | None:
        """What is wrong with an outcome."""
        whole = self.outcome(ask)
        stop = None if ask.stop is None else whole.tokens[ask.stop]
        length, reason = ask.max_tokens, "length"
        if stop is not None and whole.tokens.index(stop) < ask.max_tokens:
            length, reason = whole.tokens.index(stop) + 1, "stop"
        if got.finish_reason == "abort" and ask.abort_after is not None:
            length = len(got.tokens)
        elif got.finish_reason != reason:
            return f"ended by {got.finish_reason}, not by {reason}"
        if got.tokens != whole.tokens[:length]:
            return f"tokens {got.tokens}, alone {whole.tokens[:length]}"
        expected = () if ask.logprobs is None else whole.logprobs[:length]
        if not _close(got.logprobs, expected):
            return f"log-probabilities {got.logprobs}, alone {expected}"
        wants_prompt = ask.prompt_logprobs is not None and bool(got.tokens)
        expected = whole.prompt_logprobs if wants_prompt else ()
        if got.finish_reason != "abort" and not _close(got.prompt_logprobs, expected):
            return f"log-probabilities of the prompt {got.prompt_logprobs}, alone {expected}"
        return None


def _close(got: tuple[float, ...], expected: tuple[float, ...]) -> bool:
    pairs = zip(got, expected, strict=False)
    return len(got) == len(expected) and all(abs(a - b) <= 1e-3 for a, b in pairs)


def differences(case: Case, alone: Alone, outcomes: list[Outcome]) -> list[str]:
    """Every ask whose outcome is not what it is alone."""
    found = []
    for ask, outcome in zip(case.asks, outcomes, strict=True):
        problem = alone.difference(ask, outcome)
        if problem is not None:
            found.append(f"{ask}: {problem}")
    return found
