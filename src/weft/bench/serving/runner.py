"""Sends the requests when they are due and watches itself while it does.

Everything runs in callbacks of one event loop: one timer wakes for the next due request, the
answers come in through StreamSink, and a heartbeat measures how late the loop itself is.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from weft.bench.serving.http_client import ConnectionPool
from weft.bench.serving.payloads import Target
from weft.bench.serving.records import RequestRecord, RequestSpec
from weft.bench.serving.stream import StreamSink
from weft.errors import WorkloadError

_HEARTBEAT_S = 0.01
_BEATS_A_PROGRESS = 50
_PREPARED_BYTES = 256 << 20
_LEAD_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent: requests with times (open loop), or as slots free up (closed loop)."""

    specs: Sequence[RequestSpec]
    concurrency: int | None = None
    """Most requests open at once; with times, the rest wait and their wait is counted."""
    duration_s: float | None = None
    """Send nothing more after this long."""
    timeout_s: float = 600.0
    """An answer that takes longer is given up and counted as failed."""

    def __post_init__(self) -> None:
        for name, value in (
            ("concurrency", self.concurrency),
            ("duration", self.duration_s),
            ("timeout", self.timeout_s),
        ):
            if value is not None and not 0 < value < math.inf:
                raise WorkloadError(f"`{name}` {value:g}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """All records and what the client itself cost. Times are perf_counter seconds."""

    records: list[RequestRecord]
    start_s: float
    end_s: float
    cpu_s: float
    """Processor time of this process from the first to the last request."""
    loop_lag_s: array[float]
    """How late each 10 ms heartbeat of the event loop came."""
    event_loop: str

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Live figures for the progress line."""

    elapsed_s: float
    offered: int
    finished: int
    failed: int
    running: int
    total: int


async def run_load(
    target: Target,
    load: Load,
    *,
    on_progress: Callable[[Snapshot], None] | None = None,
    first_index: int = 0,
) -> RunOutcome:
    """Send the whole load and return every record; bounded by the load's own time limits."""
    pool = ConnectionPool(endpoint=target.endpoint)
    driver = _Driver(target=target, load=load, pool=pool, on_progress=on_progress)
    driver.prepare(first_index)
    gc.collect()
    gc.freeze()
    try:
        return await driver.run()
    finally:
        gc.unfreeze()
        pool.close()


@dataclass(kw_only=True)
class _Driver:
    target: Target
    load: Load
    pool: ConnectionPool
    on_progress: Callable[[Snapshot], None] | None
    _records: list[RequestRecord] = field(default_factory=list)
    _open: dict[RequestRecord, Callable[[], None]] = field(default_factory=dict)
    _waiting: deque[RequestRecord] = field(default_factory=deque)
    _prepared: dict[int, bytes] = field(default_factory=dict)
    _lags: array[float] = field(default_factory=lambda: array("d"))
    _next: int = 0
    _finished: int = 0
    _failed: int = 0
    _beats: int = 0
    _no_more: bool = False

    def prepare(self, first_index: int) -> None:
        """Write the requests out before the clock runs, as far as memory allows."""
        self._first_index = first_index
        size = 0
        for index, spec in enumerate(self.load.specs):
            request = self.target.request(spec, first_index + index)
            self._prepared[index] = request
            size += len(request)
            if size > _PREPARED_BYTES:
                return

    async def run(self) -> RunOutcome:
        self._loop = asyncio.get_running_loop()
        self._all_done = self._loop.create_future()
        cpu_s = time.process_time()
        self._start_s = time.perf_counter() + _LEAD_S
        self._clock_offset_s = self._loop.time() - time.perf_counter()
        self._beat_due_s = self._start_s
        self._at(self._start_s, self._beat)
        self._at(self._start_s, self._begin)
        await self._all_done
        self._heart.cancel()
        if self.on_progress:
            self.on_progress(self._snapshot())
        return RunOutcome(
            records=self._records,
            start_s=self._start_s,
            end_s=max((record.end_s for record in self._records), default=self._start_s),
            cpu_s=time.process_time() - cpu_s,
            loop_lag_s=self._lags,
            event_loop=type(self._loop).__module__.split(".", maxsplit=1)[0],
        )

    def _at(self, when_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_at(when_s + self._clock_offset_s, callback)

    def _begin(self) -> None:
        if self.load.specs[0].at_s is not None:
            self._send_due()
            return
        assert self.load.concurrency is not None
        for _ in range(self.load.concurrency):
            self._send_next_closed(self._start_s)

    def _send_due(self) -> None:
        """Open loop: send everything that is due, then sleep until the next."""
        specs = self.load.specs
        now_s = time.perf_counter()
        while self._next < len(specs):
            due_s = self._start_s + (specs[self._next].at_s or 0.0)
            if self._past_duration(due_s):
                break
            if due_s > now_s:
                self._at(due_s, self._send_due)
                return
            self._offer(due_s)
            now_s = time.perf_counter()
        self._no_more = True
        self._check_done()

    def _send_next_closed(self, freed_s: float) -> None:
        """Closed loop: the slot that became free at ``freed_s`` takes the next request."""
        if self._next >= len(self.load.specs) or self._past_duration(time.perf_counter()):
            self._no_more = True
            self._check_done()
        else:
            self._offer(freed_s)

    def _past_duration(self, when_s: float) -> bool:
        limit_s = self.load.duration_s
        return limit_s is not None and when_s - self._start_s >= limit_s

    def _offer(self, due_s: float) -> None:
        spec = self.load.specs[self._next]
        record = RequestRecord(index=self._next, spec=spec, scheduled_s=due_s, ready_s=due_s)
        self._records.append(record)
        self._next += 1
        limit = self.load.concurrency
        if limit is not None and len(self._open) >= limit:
            self._waiting.append(record)
        else:
            self._send(record)

    def _send(self, record: RequestRecord) -> None:
        request = self._prepared.pop(record.index, None) or self.target.request(
            record.spec, self._first_index + record.index
        )
        sink = StreamSink(record, self._ended)
        record.sent_s = time.perf_counter()
        self._open[record] = self.pool.submit(request, sink)

    def _ended(self, record: RequestRecord) -> None:
        self._open.pop(record, None)
        self._finished += 1
        self._failed += not record.completed
        if self._waiting:
            waiting = self._waiting.popleft()
            waiting.ready_s = record.end_s
            self._send(waiting)
        elif record.spec.at_s is None:
            self._loop.call_soon(self._send_next_closed, record.end_s)
            return
        self._check_done()

    def _check_done(self) -> None:
        if self._no_more and not self._open and not self._waiting and not self._all_done.done():
            self._all_done.set_result(None)

    def _beat(self) -> None:
        now_s = time.perf_counter()
        self._lags.append(max(0.0, now_s - self._beat_due_s))
        self._beats += 1
        if self._beats % _BEATS_A_PROGRESS == 0:
            self._give_up_late(now_s)
            if self.on_progress:
                self.on_progress(self._snapshot())
        self._beat_due_s = time.perf_counter() + _HEARTBEAT_S
        self._heart = self._at(self._beat_due_s, self._beat)

    def _give_up_late(self, now_s: float) -> None:
        limit_s = self.load.timeout_s
        late = [record for record in self._open if now_s - record.sent_s > limit_s]
        for record in late:
            give_up = self._open[record]
            give_up()
            record.error = f"no end of the answer within {limit_s:g} s"
            record.end_s = now_s
            self._ended(record)

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            elapsed_s=time.perf_counter() - self._start_s,
            offered=len(self._records),
            finished=self._finished,
            failed=self._failed,
            running=len(self._open),
            total=len(self.load.specs),
        )
