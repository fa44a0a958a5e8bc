"""A server step by step: requests arrive, wait, are prefilled in chunks and decode.

An event simulation of an engine's :class:`weft.scheduling.policy.Policy` on any clock of steps.
Nothing happens between an arrival, an end and a full cache: such stretches of decode steps
advance at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from weft.errors import WorkloadError
from weft.prediction.operators import StepLoad
from weft.scheduling.policy import Policy

StepTime = Callable[[StepLoad], float]
"""µs from one step's start to the next one's."""

Watcher = Callable[[StepLoad, float, int, float], None]
"""Told of every stretch: step, how many of it, requests without a token, decode shares."""


@dataclass(kw_only=True, slots=True)
class Visit:
    """One request: lengths in tokens, times in µs. ``cached``: prompt tokens that are known."""

    prompt: int
    decode: int
    arrival_us: float = 0.0
    cached: int = 0
    computed: int = 0
    target: int = 0
    produced: int = 0
    began: int = 0
    first_us: float = -1.0
    end_us: float = -1.0

    @property
    def ttft_us(self) -> float:
        return self.first_us - self.arrival_us

    @property
    def tpot_us(self) -> float:
        return (self.end_us - self.first_us) / max(self.decode - 1, 1)


@dataclass(kw_only=True)
class Server:
    """One replica. ``cache_tokens``: positions that the key-value cache holds.

    clients: how many requests are open at most (a closed loop); None where they come by the clock.
    """

    policy: Policy
    step_us: StepTime
    cache_tokens: int
    clients: int | None = None
    watch: Watcher | None = None
    now: float = 0.0
    busy_us: float = 0.0
    prompt_us: float = 0.0
    most_running: int = 0
    most_held: int = 0
    preemptions: int = 0
    _tick: int = 0
    _held: int = 0
    _context: int = 0
    _shares: float = 0.0
    _order: count[int] = field(default_factory=count)
    _coming: deque[Visit] = field(default_factory=deque)
    _waiting: deque[Visit] = field(default_factory=deque)
    _prompts: list[Visit] = field(default_factory=list)
    _decoding: list[tuple[int, int, Visit]] = field(default_factory=list)

    def run(self, visits: Iterable[Visit]) -> list[Visit]:
        """Serve ``visits`` (by arrival) until all are answered."""
        every = list(visits)
        self._coming = deque(every)
        longest = max((v.prompt + v.decode for v in every), default=0)
        if longest > self.cache_tokens:
            raise WorkloadError(
                f"the cache holds {self.cache_tokens} tokens, one request needs {longest}; "
                "use more GPUs a replica (`tp`, `pp`)"
            )
        if self.clients is not None:
            for _ in range(min(self.clients, len(every))):
                self._coming[0].arrival_us = self.now
                self._waiting.append(self._coming.popleft())
        while self._coming or self._waiting or self._prompts or self._decoding:
            self._arrive()
            chunks = self._chunks()
            if chunks:
                self._prefill(chunks)
            else:
                self._stretch()
        return every

    def _arrive(self) -> None:
        if self.clients is None:
            idle = not (self._waiting or self._prompts or self._decoding)
            if idle:
                self.now = max(self.now, self._coming[0].arrival_us)
            while self._coming and self._coming[0].arrival_us <= self.now:
                self._waiting.append(self._coming.popleft())

    def _chunks(self) -> list[tuple[Visit, int]]:
        """Prompts of the next step and their rows: running ones first, then waiting ones."""
        decoding = len(self._decoding)
        room = self.policy.max_requests - decoding - len(self._prompts)
        rows = self.policy.prompt_rows(decoding)
        chunks: list[tuple[Visit, int]] = []
        for visit in self._prompts:
            given = min(visit.target - visit.computed, rows)
            if given:
                chunks.append((visit, given))
                rows -= given
        while self._waiting and room and rows:
            visit = self._waiting[0]
            visit.target = visit.prompt + visit.produced
            left = visit.target - visit.cached
            given = self.policy.rows_for(left, rows, alone=not chunks)
            if not given or not self._admit(visit):
                break
            self._waiting.popleft()
            visit.computed = visit.cached
            self._prompts.append(visit)
            chunks.append((visit, given))
            rows -= given
            room -= 1
        return chunks

    def _admit(self, visit: Visit) -> bool:
        size = self._size(visit)
        growth = len(self._decoding) if self.policy.admission == "present" else 0
        if self._held + size + growth > self.cache_tokens:
            return False
        self._held += size
        return True

    def _size(self, visit: Visit) -> int:
        """Positions booked for a request that enters now."""
        if self.policy.admission == "whole":
            return visit.prompt + visit.decode
        return visit.prompt + visit.produced

    def _prefill(self, chunks: list[tuple[Visit, int]]) -> None:
        rows = sum(given for _, given in chunks)
        pairs = sum(given * (visit.computed + given / 2) for visit, given in chunks)
        decoding = len(self._decoding) if self.policy.mixes else 0
        step = StepLoad(
            decode_sequences=decoding,
            decode_context=self._context / decoding if decoding else 0.0,
            prefill_tokens=rows,
            prefill_sequences=len(chunks),
            prefill_context=pairs / rows,
        )
        self.prompt_us += self._advance(step, 1)
        for visit, given in chunks:
            visit.computed += given
        if decoding:
            self._decoded(1)
        done = [visit for visit, _ in chunks if visit.computed == visit.target]
        if done:
            self._prompts = [v for v in self._prompts if v.computed < v.target]
        for visit in done:
            self._first(visit)

    def _first(self, visit: Visit) -> None:
        """The prompt is in the cache: a token comes out of it."""
        if visit.first_us < 0:
            visit.first_us = self.now
        visit.produced += 1
        if self.policy.admission == "present":
            self._held += 1
        if visit.produced >= visit.decode:
            self._end(visit)
            return
        visit.began = self._tick - visit.produced
        self._context += visit.prompt + visit.produced
        self._shares += 1 / (visit.decode - 1)
        heappush(self._decoding, (visit.began + visit.decode, next(self._order), visit))
        self.most_running = max(self.most_running, len(self._decoding))

    def _stretch(self) -> None:
        """Decode steps until something happens."""
        running = len(self._decoding)
        steps = self._decoding[0][0] - self._tick
        if self.policy.admission == "present":
            fitting = (self.cache_tokens - self._held) // running
            if fitting < 1:
                self._preempt()
                return
            steps = min(steps, fitting)
        step = StepLoad(
            decode_sequences=running,
            decode_context=self._context / running + (steps - 1) / 2,
        )
        if self.clients is None and self._coming:
            left = self._coming[0].arrival_us - self.now
            until = max(1, int(left / self.step_us(step)) + 1)
            if until < steps:
                steps = until
                step = StepLoad(
                    decode_sequences=running,
                    decode_context=self._context / running + (steps - 1) / 2,
                )
        self._advance(step, steps)
        self._decoded(steps)

    def _advance(self, step: StepLoad, steps: int) -> float:
        time_us = steps * self.step_us(step)
        if self.watch:
            silent = sum(v.first_us < 0 for v in (*self._waiting, *self._prompts))
            self.watch(step, steps, silent, self._shares if step.decode_sequences else 0.0)
        self.now += time_us
        self.busy_us += time_us
        self.most_held = max(self.most_held, self._held)
        return time_us

    def _decoded(self, steps: int) -> None:
        """Every decoding request has ``steps`` tokens more; some have ended."""
        running = len(self._decoding)
        self._tick += steps
        self._context += steps * running
        if self.policy.admission == "present":
            self._held += steps * running
        while self._decoding and self._decoding[0][0] <= self._tick:
            _, _, visit = heappop(self._decoding)
            self._context -= visit.prompt + visit.decode
            self._shares -= 1 / (visit.decode - 1)
            visit.produced = visit.decode
            self._end(visit)

    def _end(self, visit: Visit) -> None:
        visit.end_us = self.now
        self._held -= visit.prompt + visit.decode
        if self.clients is not None and self._coming:
            following = self._coming.popleft()
            following.arrival_us = self.now
            self._waiting.append(following)

    def _preempt(self) -> None:
        """The youngest request gives its cache back and is computed again later."""
        entry = max(self._decoding, key=lambda item: item[1])
        self._decoding.remove(entry)
        visit = entry[2]
        visit.produced = self._tick - visit.began
        self._context -= visit.prompt + visit.produced
        self._shares -= 1 / (visit.decode - 1)
        self._held -= visit.prompt + visit.produced
        visit.cached = 0
        self._waiting.appendleft(visit)
        self.preemptions += 1
