"""What one request was and what its answer did, chunk by chunk, as received.

Nothing here is an interpretation: definitions.py turns these into TTFT, TPOT, ITL and E2E.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class RequestSpec:
    """One request to send: when (seconds after the start; None = as soon as a slot is free)."""

    prompt_tokens: int
    output_tokens: int
    at_s: float | None = None
    block_ids: tuple[int, ...] = ()
    """Identities of the prompt's blocks: equal leading ids mean an equal leading text."""
    text: str | None = None
    """The prompt itself, where it is not made up; ``prompt_tokens`` is then an estimate."""


@dataclass(slots=True, kw_only=True, eq=False)
class RequestRecord:
    """One request while and after it ran. Times are ``time.perf_counter`` seconds.

    A chunk is one event with a non-empty ``choices`` list. ``chunk_tokens`` holds the
    server's own cumulative output count after that chunk (-1 where it gave none) and
    ``chunk_content`` whether the chunk carried text, reasoning or a tool call.
    """

    index: int
    spec: RequestSpec
    scheduled_s: float
    ready_s: float = 0.0
    """When it could be sent: ``scheduled_s``, or when the concurrency limit let it go."""
    sent_s: float = 0.0
    end_s: float = 0.0
    status: int = 0
    error: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    chunk_s: array[float] = field(default_factory=lambda: array("d"))
    chunk_tokens: array[int] = field(default_factory=lambda: array("q"))
    chunk_content: bytearray = field(default_factory=bytearray)

    @property
    def completed(self) -> bool:
        return self.error is None

    @property
    def num_output_tokens(self) -> int:
        """Output tokens by the server's count, else the number of chunks with content."""
        return self.output_tokens or sum(self.chunk_content)

    @property
    def counted_by_server(self) -> bool:
        return self.output_tokens is not None
