"""Workload: how many tokens come in and go out, and how many requests at once."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from weft.errors import WorkloadError
from weft.vocabulary.checks import check_counts

MOST_SEQUENCES: Final = 100_000
_MOST_MADE_UP: Final = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Prompt and decode lengths in tokens, and the number of sequences in the batch.

    ``decode_tokens`` counts every generated token; the first one comes out of
    prefill, so there are ``decode_tokens - 1`` decode steps.
    """

    prompt_tokens: int = 128
    decode_tokens: int = 128
    batch: int = 1

    def __post_init__(self) -> None:
        check_counts(self, ("prompt_tokens", "decode_tokens", "batch"), WorkloadError)
        if self.batch > MOST_SEQUENCES:
            raise WorkloadError(f"`batch` {self.batch}: must be at most {MOST_SEQUENCES} sequences")

    @property
    def num_decode_steps(self) -> int:
        return self.decode_tokens - 1

    def made_up_prompts(self, seed: int, vocab_size: int) -> list[list[int]]:
        """``batch`` prompts of ``prompt_tokens`` random token ids."""
        if self.batch * self.prompt_tokens > _MOST_MADE_UP:
            raise WorkloadError(
                f"`batch` {self.batch}: with `prompt_tokens` {self.prompt_tokens} these are more "
                f"than {_MOST_MADE_UP} made-up tokens"
            )
        generator = random.Random(seed)  # noqa: S311 - not a secret
        return [
            [generator.randrange(vocab_size) for _ in range(self.prompt_tokens)]
            for _ in range(self.batch)
        ]


WORKLOADS: Final = {
    "paper": Workload(prompt_tokens=128, decode_tokens=128, batch=1),
    "prefill-heavy": Workload(prompt_tokens=2363, decode_tokens=128, batch=8),
    "decode-heavy": Workload(prompt_tokens=1426, decode_tokens=3072, batch=8),
    "chat": Workload(prompt_tokens=1024, decode_tokens=256, batch=16),
}


def workload_named(name: str) -> Workload:
    """The named workload, or a UserError that lists the names."""
    try:
        return WORKLOADS[name]
    except KeyError:
        raise WorkloadError(
            f"`workload` {name}: unknown; choose one of {', '.join(WORKLOADS)}"
        ) from None
