"""Scheduler: which rows of which requests the next step computes.

Every rank runs the same scheduler on the same requests, so nothing has to be sent
to agree. A request's position in its life is one number, ``num_computed``: prefill
(in one or several chunks), decode and recomputation after preemption are the same
thing, "compute the rows that are not cached yet".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from weft.engine.block_pool import BlockPool
from weft.engine.request import Request
from weft.errors import WorkloadError
from weft.vocabulary.schedule import Phase


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """``count`` rows of ``request`` from position ``start``."""

    request: Request
    start: int
    count: int

    @property
    def reaches_end(self) -> bool:
        """Whether the next token can be sampled after these rows."""
        return self.start + self.count == self.request.length

    @property
    def is_decode(self) -> bool:
        return self.count == 1 and self.start >= len(self.request.prompt)


@dataclass(frozen=True, kw_only=True)
class ScheduledStep:
    """The chunks of one step."""

    chunks: Sequence[Chunk]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.count for chunk in self.chunks)

    @property
    def phase(self) -> Phase:
        decodes = sum(chunk.is_decode for chunk in self.chunks)
        if decodes == len(self.chunks):
            return "decode"
        return "mixed" if decodes else "prefill"


class Scheduler:
    """Continuous batching: running requests first, then waiting ones while there is room."""

    def __init__(self, pool: BlockPool, *, max_batch_tokens: int, max_batch_requests: int) -> None:
        self.pool = pool
        self._max_tokens, self._max_requests = max_batch_tokens, max_batch_requests
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        """Queue a request; WorkloadError if it could not run even alone."""
        needed = len(request.prompt) + request.sampling.max_tokens
        if needed > self.pool.capacity_tokens:
            raise WorkloadError(
                f"prompt {len(request.prompt)} + decode {request.sampling.max_tokens} = {needed} "
                f"tokens: more than the {self.pool.capacity_tokens} that the key-value cache holds"
            )
        self.waiting.append(request)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def schedule(self) -> ScheduledStep:
        """Choose the next step's rows and give them cache blocks."""
        budget = self._max_tokens
        chunks: list[Chunk] = []
        for request in list(self.running):
            if budget and request in self.running:
                budget -= self._take(request, budget, chunks)
        while self.waiting and budget and len(self.running) < self._max_requests:
            request = self.waiting[0]
            count = min(request.length - request.num_computed, budget)
            if not self.pool.grow(request.blocks, request.num_computed + count):
                break
            self.running.append(self.waiting.popleft())
            chunks.append(Chunk(request=request, start=request.num_computed, count=count))
            budget -= count
        return ScheduledStep(chunks=chunks)

    def finish(self, step: ScheduledStep, sampled: Sequence[int]) -> list[Request]:
        """Book the step's results; ``sampled`` has one id a chunk that reaches its end.

        Returns the requests that got a token.
        """
        ids = iter(sampled)
        advanced = []
        for chunk in step.chunks:
            reaches_end = chunk.reaches_end
            chunk.request.num_computed += chunk.count
            if reaches_end:
                chunk.request.append(next(ids))
                advanced.append(chunk.request)
                if chunk.request.finish_reason:
                    self._drop(chunk.request)
        return advanced

    def abort(self, number: int) -> None:
        """Forget a request, wherever it is; its blocks are free at once."""
        for request in [*self.running, *self.waiting]:
            if request.number == number:
                request.finish_reason = "abort"
                self._drop(request)

    def _drop(self, request: Request) -> None:
        self.pool.release(request.blocks)
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)

    def _take(self, request: Request, budget: int, chunks: list[Chunk]) -> int:
        count = min(request.length - request.num_computed, budget)
        while not self.pool.grow(request.blocks, request.num_computed + count):
            victim = self.running[-1]
            self._preempt(victim)
            chunks[:] = [chunk for chunk in chunks if chunk.request is not victim]
            if victim is request:
                return 0
        chunks.append(Chunk(request=request, start=request.num_computed, count=count))
        return count

    def _preempt(self, request: Request) -> None:
        """Give a running request's blocks back; it is recomputed from its first position."""
        self.pool.release(request.blocks)
        request.num_computed = 0
        self.running.remove(request)
        self.waiting.appendleft(request)
