"""Requests: what a user asks for, what the engine knows of it, what comes back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Literal

from weft.errors import WorkloadError
from weft.vocabulary.checks import check_between, check_limits, check_types

FinishReason = Literal["stop", "length", "abort", "error"]
MOST_LOGPROBS: Final = 20
MOST_BIAS: Final = 100
NO_TOKEN: Final = -1
"""The id of a row whose logits are no numbers, by the model's fault or by that of a step."""
_GREEDY_BELOW: Final = 1e-5
_LEAST: Final = {"max_tokens": 1, "min_tokens": 0}
_BETWEEN: Final = {
    "temperature": (0, 10**6),
    "top_k": (0, 1 << 31),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.001, 1000),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "logprobs": (0, MOST_LOGPROBS),
    "prompt_logprobs": (0, MOST_LOGPROBS),
}
NOT_FINITE: Final = "the model's logits are not numbers (NaN); look at its weights and its dtype"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop.

    temperature 0 (below 1e-5) is greedy. With a ``seed`` a request's tokens depend on nothing but
    its prompt, the weights and these parameters; without one the engine's seed and the request's
    number decide.
    top_k likeliest tokens are kept (0: all), of those the fewest that together have the probability
    top_p, of those the ones with at least min_p times the probability of the likeliest.
    Before that logits change: those of tokens in prompt or output are divided by
    repetition_penalty (multiplied where negative), and lose presence_penalty once and
    frequency_penalty for each time in the output; ``logit_bias`` (token id, value) is added.
    Tokens that would stop are impossible before min_tokens.
    logprobs: log-probabilities of each sampled token and of this many likeliest ones;
    prompt_logprobs: the same of the prompt's tokens but the first.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[float, ...], ...] = ()
    min_tokens: int = 0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        check_types(self, WorkloadError)
        check_limits(self, _LEAST, WorkloadError)
        check_between(self, _BETWEEN, WorkloadError)
        if self.top_p <= 0:
            raise WorkloadError(f"`top_p` {self.top_p}: must be above 0")
        if self.min_tokens > self.max_tokens:
            raise WorkloadError(
                f"`min_tokens` {self.min_tokens}: more than `max_tokens` {self.max_tokens}"
            )
        for entry in self.logit_bias:
            if len(entry) != 2 or entry[0] % 1 != 0 or not abs(entry[1]) <= MOST_BIAS:
                raise WorkloadError(
                    f"`logit_bias` {entry}: must be a token id and a value of "
                    f"-{MOST_BIAS} to {MOST_BIAS}"
                )

    def check_vocabulary(self, vocab_size: int, stop_ids: Collection[int] = ()) -> None:
        """Raise WorkloadError for tokens that do not exist, or where all stop before min_tokens.

        stop_ids: all that stop the request, the model's own included.
        """
        biased = [token for token, _ in self.logit_bias]
        for name, tokens in (("logit_bias", biased), ("stop_token_ids", self.stop_token_ids)):
            wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
            if wrong is not None:
                raise WorkloadError(
                    f"`{name}` {wrong:.0f}: outside the vocabulary (0 to {vocab_size - 1})"
                )
        if self.min_tokens and len(stop_ids) >= vocab_size:
            raise WorkloadError(
                f"`min_tokens` {self.min_tokens}: no token can be first, for every token stops; "
                "leave some out of `stop_token_ids` or set `min_tokens` 0"
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _GREEDY_BELOW

    @property
    def penalizes(self) -> bool:
        """Whether logits depend on the tokens before."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def cuts(self) -> bool:
        """Whether improbable tokens are left out, so that the rest is drawn from."""
        return not self.is_greedy and (self.top_k, self.top_p, self.min_p) != (0, 1, 0)

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token, or a draw by temperature alone, is what is wanted."""
        return not (self.cuts or self.penalizes or self.logit_bias or self.min_tokens)


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """One token: its own log-probability and (id, log-probability) of the likeliest.

    Of the softmax of the model's raw logits: before temperature, top-k and top-p.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(kw_only=True, eq=False)
class Request:
    """A request inside the engine.

    ``num_computed`` positions have their keys and values cached (or will have after the
    steps under way), ``num_cached`` of them before the first of its own; ``num_pending`` tokens are sampled by steps under way and not known
    here yet. While it runs it has a ``row`` of the engine's per-request tables, where its
    last sampled id lies (``has_last_id``) once it was sampled under that row (``is_decoding``) and
    was no draft that the host had to check first; ``admission``
    counts in which order requests began to run. ``keys`` of its full blocks (see prefix.py), of
    which the first ``num_remembered`` can be found by others. ``error``: why it ended, or on this
    rank will.
    """

    number: int
    prompt: list[int]
    sampling: SamplingParams
    stop_ids: frozenset[int]
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    num_pending: int = 0
    group: int = 0
    row: int = -1
    is_decoding: bool = False
    has_last_id: bool = False
    blocks: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    num_remembered: int = 0
    blocks_sent: int = 0
    admission: int = 0
    finish_reason: FinishReason | None = None
    error: str = ""

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output

    def slice(self, start: int, stop: int) -> list[int]:
        """Tokens from ``start`` to before ``stop``, without copying all of them."""
        count = len(self.prompt)
        if stop <= count:
            return self.prompt[start:stop]
        return self.prompt[start:] + self.output[max(start - count, 0) : stop - count]

    @property
    def length(self) -> int:
        """Tokens, those on their way included."""
        return len(self.prompt) + len(self.output) + self.num_pending

    @property
    def num_left(self) -> int:
        """Tokens that may still be asked for."""
        return self.sampling.max_tokens - len(self.output) - self.num_pending

    def leave_row(self) -> None:
        """Forget the row, its blocks and what the device knows of them."""
        self.row, self.is_decoding, self.has_last_id = -1, False, False
        self.blocks, self.blocks_sent, self.num_remembered = [], 0, 0

    def append(self, token: int) -> bool:
        """Add a sampled token; whether that ends the request."""
        if token == NO_TOKEN:
            self.finish_reason = "error"
            self.error = self.error or NOT_FINITE
            return True
        self.output.append(token)
        if token in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.output) >= self.sampling.max_tokens:
            self.finish_reason = "length"
        return self.is_finished


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished request. ``token_ids`` has the stop token where one ended it.

    ``logprobs`` has one entry a token where the request asked for them, and
    ``prompt_logprobs`` one for each of the prompt's tokens but the first.
    """

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str | None
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
