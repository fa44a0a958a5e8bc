"""Scheduler: which rows of which requests the next step computes.

Every rank runs the same scheduler on the same requests, so nothing has to be sent
to agree. A request's position in its life is one number, ``num_computed``: prefill
(in one or several chunks), decode and recomputation after preemption are the same
thing, "compute the rows that are not cached yet". Steps may be scheduled before the
tokens of those in front are known: how many there will be is known, and that is enough.

Requests belong to groups, one step at a time each; a pipeline has as many groups as
stages, so that all stages have work.
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
    """``count`` rows of ``request`` from position ``start``.

    samples: whether the next token is sampled after these rows; token_index: which of
    the request's output tokens that is.
    """

    request: Request
    start: int
    count: int
    samples: bool = True
    token_index: int = 0

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

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_tokens: int,
        max_batch_requests: int,
        num_groups: int = 1,
    ) -> None:
        """Limits are those of one step; there are ``num_groups`` times as many running requests.

        max_batch_tokens: rows of prompts; running requests have one row each beside them, so
        that they do not cut prompts of a length that the kernels like.
        """
        self.pool, self.num_groups = pool, num_groups
        self._max_tokens, self._max_requests = max_batch_tokens, max_batch_requests
        self._rows = deque(range(max_batch_requests * num_groups))
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
        sizes = [0] * self.num_groups
        for other in (*self.running, *self.waiting):
            sizes[other.group] += 1
        request.group = sizes.index(min(sizes))
        self.waiting.append(request)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def schedule(self, group: int = 0) -> ScheduledStep:
        """Choose the rows of the group's next step and give them cache blocks."""
        budget = self._max_tokens
        chunks: list[Chunk] = []
        for request in self._running_of(group):
            if request not in self.running or not request.num_left:
                continue
            if request.length - request.num_computed == 1:
                self._take(request, 1, chunks)
            elif budget:
                budget -= self._take(request, budget, chunks)
        for request in [request for request in self.waiting if request.group == group]:
            if not budget or len(self._running_of(group)) >= self._max_requests:
                break
            count = min(request.length - request.num_computed, budget)
            if request.num_pending or not self.pool.grow(
                request.blocks, request.num_computed + count
            ):
                break
            self.waiting.remove(request)
            self.running.append(request)
            request.row = self._rows.popleft()
            chunks.append(_chunk(request, count))
            budget -= count
        return ScheduledStep(chunks=chunks)

    def finish(self, sampling: Sequence[Chunk], sampled: Sequence[int]) -> list[Request]:
        """Book a step's results: one id for each of its chunks that sample.

        Returns the requests that got a token. Tokens of requests that ended while the
        step was under way are dropped.
        """
        advanced = []
        for chunk, token in zip(sampling, sampled, strict=True):
            request = chunk.request
            request.num_pending -= 1
            if not request.is_finished:
                self._append(request, token)
                advanced.append(request)
        return advanced

    def _append(self, request: Request, token: int) -> None:
        request.append(token)
        if request.is_finished:
            self._drop(request)

    def abort(self, number: int) -> None:
        """Forget a request, wherever it is; its blocks are free at once."""
        for request in [*self.running, *self.waiting]:
            if request.number == number:
                request.finish_reason = "abort"
                self._drop(request)

    def _running_of(self, group: int) -> list[Request]:
        return [request for request in self.running if request.group == group]

    def _drop(self, request: Request) -> None:
        if request in self.running:
            self.running.remove(request)
            self._take_back(request)
        else:
            self.waiting.remove(request)

    def _take(self, request: Request, budget: int, chunks: list[Chunk]) -> int:
        count = min(request.length - request.num_computed, budget)
        while not self.pool.grow(request.blocks, request.num_computed + count):
            victim = self.running[-1]
            for chunk in [chunk for chunk in chunks if chunk.request is victim]:
                chunks.remove(chunk)
                victim.num_pending -= chunk.samples
            self._preempt(victim)
            if victim is request:
                return 0
        chunks.append(_chunk(request, count))
        return count

    def _preempt(self, request: Request) -> None:
        """Give a running request's blocks back; it is recomputed from its first position."""
        self.running.remove(request)
        self._take_back(request)
        request.num_computed = 0
        self.waiting.appendleft(request)

    def _take_back(self, request: Request) -> None:
        self.pool.release(request.blocks)
        self._rows.append(request.row)
        request.blocks_sent = 0


def _chunk(request: Request, count: int) -> Chunk:
    """The request's next rows, booked as computed."""
    start, length = request.num_computed, request.length
    samples = start + count == length
    chunk = Chunk(
        request=request,
        start=start,
        count=count,
        samples=samples,
        token_index=length - len(request.prompt),
    )
    request.num_computed += count
    request.num_pending += samples
    return chunk
