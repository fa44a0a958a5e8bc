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

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from weft.engine.block_pool import BlockPool
from weft.engine.prefix import PrefixCache
from weft.engine.request import NO_TOKEN, FinishReason, Request
from weft.errors import WorkloadError
from weft.scheduling.policy import Policy


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """``count`` rows of ``request`` from position ``start``.

    is_decode: one row of a token that was sampled before; is_fed: it is read where it was sampled,
    in the table of the device; samples: whether the next token is sampled after these rows;
    token_index: which of the request's output tokens that is; draft: the row's token is this
    guess, and what is sampled after it counts only if the guess was right.
    """

    request: Request
    start: int
    count: int
    is_decode: bool = False
    is_fed: bool = False
    samples: bool = True
    token_index: int = 0
    draft: int | None = None

    @property
    def is_wrong(self) -> bool:
        """Whether it follows a draft that is not what the model said (nor those before it)."""
        if self.draft is None:
            return False
        output = self.request.output
        return len(output) != self.token_index or output[-1] != self.draft


class Proposer(Protocol):
    """Guesses what comes next."""

    def propose(self, request: Request, most: int) -> list[int]: ...


@dataclass(kw_only=True, eq=False)
class _Group:
    """Requests that step together: running ones as admitted, waiting ones as they came."""

    running: dict[Request, None] = field(default_factory=dict)
    waiting: OrderedDict[Request, None] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)


class Scheduler:
    """Continuous batching: running requests first, then waiting ones while there is room."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_tokens: int,
        max_batch_requests: int,
        num_groups: int = 1,
        prefix_caching: bool = False,
        proposer: Proposer | None = None,
    ) -> None:
        """Limits are those of one step; there are ``num_groups`` times as many running requests.

        max_batch_tokens: rows of prompts and drafts; running requests have one row each beside them, so
        that they do not cut prompts of a length that the kernels like. With a ``proposer`` every
        step must be finished before its group's next one.
        """
        self.pool, self.num_groups = pool, num_groups
        self.prefix = PrefixCache(pool, enabled=prefix_caching)
        self.policy = Policy(
            max_tokens=max_batch_tokens, max_requests=max_batch_requests, counts_decode=False
        )
        self._proposer = proposer
        self.num_drafted = self.num_accepted = 0
        self._reset()

    def _reset(self) -> None:
        self.pool.reset()
        self._rows = deque(range(self.policy.max_requests * self.num_groups))
        self._groups = [_Group() for _ in range(self.num_groups)]
        self._open: dict[int, Request] = {}
        self._admissions = 0

    @property
    def num_running(self) -> int:
        return sum(len(group.running) for group in self._groups)

    @property
    def num_waiting(self) -> int:
        return sum(len(group.waiting) for group in self._groups)

    @property
    def has_work(self) -> bool:
        return bool(self._open)

    def check(self, prompt_tokens: int, max_tokens: int) -> None:
        """Raise WorkloadError for a request that could not run even alone."""
        needed = prompt_tokens + max_tokens
        if needed > self.pool.capacity_tokens:
            raise WorkloadError(
                f"prompt {prompt_tokens} + decode {max_tokens} = {needed} "
                f"tokens: more than the {self.pool.capacity_tokens} that the key-value cache holds"
            )

    def add(self, request: Request) -> None:
        """Queue a request whose size was checked, in the smallest group."""
        sizes = [len(group) for group in self._groups]
        request.group = sizes.index(min(sizes))
        self._open[request.number] = request
        self._groups[request.group].waiting[request] = None

    def schedule(self, index: int = 0) -> list[Chunk]:
        """Choose the rows of the next step of the group ``index`` and give them cache blocks."""
        group = self._groups[index]
        budget = self.policy.prompt_rows(len(group.running))
        chunks: dict[Request, list[Chunk]] = {}
        for request in list(group.running):
            if request not in group.running or not request.num_left:
                continue
            if request.is_decoding and request.length - request.num_computed == 1:
                drafts = self._drafts(request, budget)
                self._take(request, 1, chunks, drafts)
                budget -= len(drafts)
            elif budget:
                budget -= self._take(request, budget, chunks)
        while group.waiting and budget and len(group.running) < self.policy.max_requests:
            request = next(iter(group.waiting))
            rows = self.policy.rows_for(request.length, budget, alone=not chunks)
            if request.num_pending or not rows or not self._begin(request, rows):
                break
            self._admit(request, group)
            chunk = _chunk(request, rows)
            chunks[request] = [chunk]
            budget -= chunk.count
        return [chunk for own in chunks.values() for chunk in own]

    def _drafts(self, request: Request, budget: int) -> list[int]:
        """Guesses for which there is room in the request, the step and the cache."""
        most = min(request.num_left - 1, budget)
        if self._proposer is None or most < 1 or not request.is_decoding:
            return []
        drafts = self._proposer.propose(request, most)
        return drafts if self._grow(request, 1 + len(drafts)) else []

    def finish(self, sampling: Sequence[Chunk], sampled: Sequence[int]) -> list[Chunk]:
        """Book a step's results: one id for each of its chunks that sample, or NO_TOKEN.

        Returns the chunks that gave their requests a token or an error. Tokens of requests
        that ended while the step was under way are dropped, and those after wrong drafts.
        """
        kept = []
        for chunk, token in zip(sampling, sampled, strict=True):
            request = chunk.request
            request.num_pending -= 1
            if request.is_finished:
                continue
            if chunk.is_wrong:
                request.num_computed = min(request.num_computed, request.length - 1)
                continue
            self.num_accepted += chunk.draft is not None
            kept.append(chunk)
            if token != NO_TOKEN:
                self.prefix.remember(request, chunk.start + chunk.count)
            if request.append(token):
                self._drop(request)
        return kept

    def abort(self, number: int) -> None:
        """Forget a request, wherever it is; its blocks are free at once."""
        request = self._open.get(number)
        if request is not None:
            request.finish_reason = "abort"
            self._drop(request)

    def end_all(self, reason: FinishReason) -> list[Request]:
        """End every request and begin anew, whatever state a failed step has left."""
        ended = list(self._open.values())
        for request in ended:
            request.finish_reason = reason
        self._reset()
        return ended

    def _drop(self, request: Request) -> None:
        del self._open[request.number]
        group = self._groups[request.group]
        if request in group.running:
            del group.running[request]
            self._take_back(request)
        else:
            del group.waiting[request]

    def _take(
        self,
        request: Request,
        budget: int,
        chunks: dict[Request, list[Chunk]],
        drafts: Sequence[int] = (),
    ) -> int:
        """Give the request up to ``budget`` rows; those admitted last make room for them.

        There is room already for ``drafts``, which come after them.
        """
        count = min(request.length - request.num_computed, budget)
        while not self._grow(request, count):
            victim = self._last_admitted()
            dropped = chunks.pop(victim, [])
            victim.num_pending -= sum(chunk.samples for chunk in dropped)
            self._preempt(victim)
            if victim is request:
                return 0
        chunks[request] = [_chunk(request, count), *_drafted(request, drafts)]
        if drafts:
            chunks[request][0] = replace(chunks[request][0], is_fed=False)
        self.num_drafted += len(drafts)
        return count

    def _grow(self, request: Request, count: int) -> bool:
        return self.pool.grow(request.blocks, request.num_computed + count)

    def _begin(self, request: Request, budget: int) -> bool:
        """Give a waiting request the blocks that hold its beginning and those of its first rows."""
        found = self.prefix.find(request)
        skipped = len(found) * self.pool.block_size
        if not self.pool.begin(request.blocks, found, min(request.length, skipped + budget)):
            return False
        request.num_computed = skipped
        self.prefix.count(request)
        return True

    def _last_admitted(self) -> Request:
        newest = (next(reversed(group.running)) for group in self._groups if group.running)
        return max(newest, key=lambda request: request.admission)

    def _admit(self, request: Request, group: _Group) -> None:
        del group.waiting[request]
        group.running[request] = None
        request.row = self._rows.popleft()
        self._admissions += 1
        request.admission = self._admissions

    def _preempt(self, request: Request) -> None:
        """Give a running request's blocks back; it is recomputed from its first position."""
        group = self._groups[request.group]
        del group.running[request]
        self._take_back(request)
        request.num_computed = 0
        group.waiting[request] = None
        group.waiting.move_to_end(request, last=False)

    def _take_back(self, request: Request) -> None:
        """Blocks and row; steps under way keep the list of blocks that they were given."""
        self.pool.release(request.blocks)
        self._rows.append(request.row)
        request.leave_row()


def _chunk(request: Request, budget: int) -> Chunk:
    """The request's next rows, at most ``budget``, booked as computed."""
    start, length = request.num_computed, request.length
    count = min(length - start, budget)
    samples = start + count == length
    chunk = Chunk(
        request=request,
        start=start,
        count=count,
        is_decode=request.is_decoding,
        is_fed=request.has_last_id,
        samples=samples,
        token_index=length - len(request.prompt),
    )
    request.num_computed += count
    request.num_pending += samples
    request.is_decoding = request.has_last_id = samples
    return chunk


def _drafted(request: Request, drafts: Sequence[int]) -> list[Chunk]:
    """One row for each of ``drafts`` after the request's last token, booked as computed."""
    first, index = request.num_computed, request.length - len(request.prompt)
    if drafts:
        request.num_computed += len(drafts)
        request.num_pending += len(drafts)
        request.has_last_id = False
    return [
        Chunk(
            request=request,
            start=first + place,
            count=1,
            is_decode=True,
            token_index=index + place,
            draft=draft,
        )
        for place, draft in enumerate(drafts)
    ]
