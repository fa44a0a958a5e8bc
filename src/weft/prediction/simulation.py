"""A server step by step: requests arrive, wait, are prefilled in chunks and decode.

An event simulation of an engine's :class:`weft.scheduling.policy.Policy` on any clock of steps.
Nothing happens between an arrival, an end and a full cache: such stretches of decode steps
advance at once. Servers of several stages (prefill, then decode) hand requests on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

from weft.errors import WorkloadError
from weft.prediction.operators import StepLoad
from weft.scheduling.policy import Policy

StepTime = Callable[[StepLoad], float]
"""µs from one step's start to the next one's."""


@dataclass(kw_only=True, slots=True)
class Visit:
    """One request: lengths in tokens, times in µs. ``cached``: prompt tokens that are known."""

    prompt: int
    decode: int
    arrival_us: float = 0.0
    cached: int = 0
    computed: int = 0
    target: int = 0
    produced: float = 0
    from_step: int = 0
    began: float = 0
    first_us: float = -1.0
    end_us: float = -1.0

    @property
    def ttft_us(self) -> float:
        return self.first_us - self.arrival_us

    @property
    def tpot_us(self) -> float:
        return (self.end_us - self.first_us) / max(self.decode - 1, 1)

    @property
    def length(self) -> int:
        """Positions that it has by now."""
        return self.prompt + math.ceil(self.produced)


@dataclass(kw_only=True, eq=False)
class Server:
    """One replica. ``cache_tokens``: positions that the key-value cache holds.

    state_tokens: positions that a request takes whatever its length (linear attention's state).
    step_tokens: tokens of a request that a decode step yields (above 1 with speculation).
    prefills_only: requests leave with their first token.
    """

    policy: Policy
    step_us: StepTime
    cache_tokens: int
    state_tokens: int = 0
    step_tokens: float = 1.0
    prefills_only: bool = False
    watch: Callable[[StepLoad, int], None] | None = None
    now: float = 0.0
    busy_us: float = 0.0
    prompt_us: float = 0.0
    most_running: int = 0
    most_held: float = 0
    preemptions: int = 0
    _steps: int = 0
    _tick: float = 0
    _held: float = 0
    _context: float = 0
    _order: count[int] = field(default_factory=count)
    _waiting: deque[Visit] = field(default_factory=deque)
    _prompts: list[Visit] = field(default_factory=list)
    _decoding: list[tuple[float, int, Visit]] = field(default_factory=list)
    _ended: list[Visit] = field(default_factory=list)

    @property
    def num_open(self) -> int:
        return len(self._waiting) + len(self._prompts) + len(self._decoding)

    @property
    def quiet_until(self) -> float:
        """No request leaves before this time, whatever comes."""
        if self._waiting or self._prompts or not self._decoding:
            return self.now
        steps = math.ceil((self._decoding[0][0] - self._tick) / self.step_tokens)
        return self.now + steps * self.step_us(self._decode_step(1))

    def check(self, visits: Iterable[Visit]) -> None:
        """Raise WorkloadError for a request that could not run even alone."""
        longest = self.state_tokens + max(
            (v.prompt + (1 if self.prefills_only else v.decode) for v in visits), default=0
        )
        if longest > self.cache_tokens:
            raise WorkloadError(
                f"the cache holds {self.cache_tokens} tokens, one request needs {longest}; "
                "use more GPUs a replica (`tp`, `pp`)"
            )

    def add(self, visit: Visit, time_us: float) -> None:
        """A request comes; an idle server was waiting for it."""
        visit.from_step = self._steps + self.policy.steps_ahead
        if not self.num_open:
            self.now = max(self.now, time_us)
        self._waiting.append(visit)

    def advance(self, until: float) -> list[Visit]:
        """One step, or a stretch of decode steps that ends soon after ``until``: who left."""
        while self._decoding and self._steps_that_fit < 1:
            self._preempt()
        chunks = self._chunks()
        if chunks:
            self._prefill(chunks)
        elif self._decoding:
            self._stretch(until)
        ended, self._ended = self._ended, []
        return ended

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
        is_idle = not (decoding or self._prompts)
        while self._waiting and room and rows:
            visit = self._waiting[0]
            if visit.from_step > self._steps and not is_idle:
                break
            visit.target = visit.length
            left = visit.target - visit.cached
            given = self.policy.rows_for(left, rows, alone=not chunks)
            if not given or not self._admit(visit):
                break
            self._waiting.popleft()
            room -= 1
            if visit.produced and left == 1:
                self._decode(visit)
                continue
            visit.computed = visit.cached
            self._prompts.append(visit)
            chunks.append((visit, given))
            rows -= given
        return chunks

    def _admit(self, visit: Visit) -> bool:
        size = self._size(visit)
        growth = len(self._decoding) if self.policy.admission == "present" else 0
        if self._held + size + growth > self.cache_tokens:
            return False
        self._held += size
        return True

    def _size(self, visit: Visit) -> float:
        """Positions booked for a request that enters now."""
        whole = self.policy.admission == "whole"
        tokens = visit.prompt + visit.decode if whole else visit.prompt + visit.produced
        return tokens + self.state_tokens

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
        if visit.produced >= visit.decode or self.prefills_only:
            self._end(visit)
        else:
            self._decode(visit)

    def _decode(self, visit: Visit) -> None:
        visit.began = self._tick - visit.produced
        self._context += visit.prompt + visit.produced
        heappush(self._decoding, (visit.began + visit.decode, next(self._order), visit))
        self.most_running = max(self.most_running, len(self._decoding))

    def _stretch(self, until: float) -> None:
        """Decode steps until something happens."""
        steps = math.ceil((self._decoding[0][0] - self._tick) / self.step_tokens)
        steps = int(min(steps, self._steps_that_fit))
        if self._waiting:
            steps = min(steps, max(1, self._waiting[0].from_step - self._steps))
        if until < math.inf:
            left = (until - self.now) / self.step_us(self._decode_step(steps))
            steps = max(1, min(steps, int(left) + 1))
        self._advance(self._decode_step(steps), steps)
        self._decoded(steps)

    @property
    def _steps_that_fit(self) -> float:
        """Decode steps until the cache is full."""
        if self.policy.admission == "whole":
            return math.inf
        return (self.cache_tokens - self._held) // (len(self._decoding) * self.step_tokens)

    def _decode_step(self, steps: int) -> StepLoad:
        """The mean of the next ``steps`` decode steps."""
        running = len(self._decoding)
        grown = (steps - 1) / 2 * self.step_tokens
        return StepLoad(decode_sequences=running, decode_context=self._context / running + grown)

    def _advance(self, step: StepLoad, steps: int) -> float:
        time_us = steps * self.step_us(step)
        if self.watch:
            self.watch(step, steps)
        self._steps += steps
        self.now += time_us
        self.busy_us += time_us
        self.most_held = max(self.most_held, self._held)
        return time_us

    def _decoded(self, steps: int) -> None:
        """Every decoding request has the tokens of ``steps`` more; some have ended."""
        grown = steps * self.step_tokens
        self._tick += grown
        self._context += grown * len(self._decoding)
        if self.policy.admission == "present":
            self._held += grown * len(self._decoding)
        while self._decoding and self._decoding[0][0] <= self._tick:
            visit = heappop(self._decoding)[2]
            self._leave_decoding(visit)
            self._end(visit)

    def _leave_decoding(self, visit: Visit) -> None:
        visit.produced = self._tick - visit.began
        self._context -= visit.prompt + visit.produced

    def _end(self, visit: Visit) -> None:
        visit.end_us = self.now
        self._held -= self._size(visit)
        visit.produced = min(visit.produced, visit.decode)
        self._ended.append(visit)

    def _preempt(self) -> None:
        """The youngest request gives its cache back and is computed again later."""
        entry = max(self._decoding, key=lambda item: item[1])
        self._decoding.remove(entry)
        heapify(self._decoding)
        visit = entry[2]
        self._leave_decoding(visit)
        self._held -= self._size(visit)
        visit.cached = 0
        self._waiting.appendleft(visit)
        self.preemptions += 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Equal servers behind one door; a request goes to the one with the fewest.

    door_us: what each request takes there, one after another; delay_us: its way beside the others'.
    """

    servers: Sequence[Server]
    door_us: Callable[[Visit], float] = lambda _visit: 0.0
    delay_us: Callable[[Visit], float] = lambda _visit: 0.0

    def add(self, visit: Visit, time_us: float) -> None:
        min(self.servers, key=lambda server: server.num_open).add(visit, time_us)


def serve(stages: Sequence[Stage], visits: Sequence[Visit], clients: int | None = None) -> None:
    """Every request passes all stages. ``visits`` come by the clock, in order of arrival.

    clients: they come as others are answered instead, so many at once.
    """
    _Service(stages, visits, clients).run()


class _Service:
    def __init__(
        self, stages: Sequence[Stage], visits: Sequence[Visit], clients: int | None
    ) -> None:
        self.stages, self.clients, self.coming = stages, clients, deque(visits)
        self.servers = [server for stage in stages for server in stage.servers]
        self.stage_of = {
            id(server): index for index, stage in enumerate(stages) for server in stage.servers
        }
        self.free_us, self.order = [0.0] * len(stages), count()
        self.events: list[tuple[float, int, int, Visit]] = []

    def run(self) -> None:
        for _ in range(self.clients or len(self.coming)):
            self._next_comes(0.0)
        working: list[Server] = []
        while self.events or working:
            soonest = min((server.now for server in working), default=math.inf)
            if self.events and self.events[0][0] <= soonest:
                at, _, stage, visit = heappop(self.events)
                self.stages[stage].add(visit, at)
            else:
                self._advance(min(working, key=lambda server: server.now), working)
            working = [server for server in self.servers if server.num_open]

    def _advance(self, server: Server, working: Sequence[Server]) -> None:
        """Not past what may change it: an arrival, or an end elsewhere."""
        others = (other.quiet_until for other in working if other is not server)
        until = min(self.events[0][0] if self.events else math.inf, *others, math.inf)
        for visit in server.advance(until):
            if visit.produced < visit.decode:
                visit.cached = visit.prompt
                self._send(visit, server.now, self.stage_of[id(server)] + 1)
            elif self.clients is not None:
                self._next_comes(server.now)

    def _next_comes(self, time_us: float) -> None:
        if self.coming:
            visit = self.coming.popleft()
            if self.clients is not None:
                visit.arrival_us = time_us
            self._send(visit, visit.arrival_us, 0)

    def _send(self, visit: Visit, time_us: float, stage: int) -> None:
        door = self.stages[stage]
        self.free_us[stage] = max(self.free_us[stage], time_us) + door.door_us(visit)
        heappush(
            self.events,
            (self.free_us[stage] + door.delay_us(visit), next(self.order), stage, visit),
        )
