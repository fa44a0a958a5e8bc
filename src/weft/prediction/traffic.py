"""Traffic: which requests a server gets and when, made up from a seed or read from a trace."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from weft.errors import FileFormatError, WorkloadError
from weft.prediction.simulation import Visit
from weft.vocabulary.checks import check_types
from weft.vocabulary.workload import MOST_SEQUENCES, Workload

_SEED: Final = 0
_PER_CLIENT: Final = 10
_LEAST, _MOST = 100, 4000


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests of a workload's lengths, by clients or by the clock.

    concurrency: clients that each send the next request when the last is answered (a closed
    loop). rate: requests a second that come by themselves. burst: how many of them come at once
    (1 is Poisson). trace: a file of arrivals and lengths instead (rate: its mean is stretched
    to it). shortest: lengths are even between this share of the workload's and the workload's.
    requests: how many are served [10 a client, and at least 100].
    """

    workload: Workload
    concurrency: int | None = None
    rate: float | None = None
    burst: int = 1
    trace: Path | None = None
    shortest: float = 1.0
    requests: int | None = None

    def __post_init__(self) -> None:
        check_types(self, WorkloadError)
        if self.concurrency is not None and (self.rate or self.trace):
            raise WorkloadError(
                f"`concurrency` {self.concurrency}: clients wait for answers; leave out "
                "`rate` and `trace`, which say when requests come"
            )
        if self.concurrency is None and self.rate is None and self.trace is None:
            raise WorkloadError("traffic needs `concurrency`, `rate` or `trace`")
        for option, value in (
            ("`concurrency`", self.concurrency),
            ("`burst`", self.burst),
            ("`requests`", self.requests),
        ):
            if value is not None and not 1 <= value <= MOST_SEQUENCES:
                raise WorkloadError(f"{option} {value}: must be 1 to {MOST_SEQUENCES}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise WorkloadError(f"`rate` {self.rate}: must be above 0 requests a second")
        if not 0 < self.shortest <= 1:
            raise WorkloadError(f"`shortest` {self.shortest}: must be above 0 and at most 1")
        self._check_what_nobody_reads()

    def _check_what_nobody_reads(self) -> None:
        if self.burst > 1 and (self.rate is None or self.trace is not None):
            raise WorkloadError(
                f"`burst` {self.burst}: is about requests that come by `rate`; leave it out"
            )
        if self.shortest < 1 and self.trace is not None:
            raise WorkloadError(
                f"`shortest` {self.shortest}: a trace has lengths of its own; leave it out"
            )

    def visits(self, replicas: int) -> list[Visit]:
        """The requests of one of ``replicas`` equal servers, by arrival."""
        if self.trace is not None:
            return self._traced()[::replicas]
        if self.concurrency is not None:
            clients = max(1, round(self.concurrency / replicas))
            most = max(_MOST, 3 * clients)
            count = self.requests or min(max(_PER_CLIENT * clients, _LEAST), most)
            return list(self._lengths(count))
        return self._timed(replicas)

    def clients(self, replicas: int) -> int | None:
        """Clients of one replica; None where requests come by the clock."""
        if self.concurrency is None:
            return None
        return max(1, round(self.concurrency / replicas))

    def _lengths(self, count: int) -> Iterator[Visit]:
        generator = random.Random(_SEED)  # noqa: S311 - not a secret
        load = self.workload
        for _ in range(count):
            prompt, decode = (
                generator.randint(max(1, round(self.shortest * most)), most)
                for most in (load.prompt_tokens, load.decode_tokens)
            )
            yield Visit(prompt=prompt, decode=decode)

    def _timed(self, replicas: int) -> list[Visit]:
        assert self.rate is not None
        generator = random.Random(_SEED + 1)  # noqa: S311 - not a secret
        visits = list(self._lengths(self.requests or 1000))
        bursts_a_us = self.rate / replicas / self.burst * 1e-6
        clock = 0.0
        for index, visit in enumerate(visits):
            if index % self.burst == 0:
                clock += generator.expovariate(bursts_a_us)
            visit.arrival_us = clock
        return visits

    def _traced(self) -> list[Visit]:
        assert self.trace is not None
        visits = read_trace(self.trace)[: self.requests]
        span_us = visits[-1].arrival_us
        if self.rate is not None and span_us > 0:
            factor = len(visits) * 1e6 / self.rate / span_us
            for visit in visits:
                visit.arrival_us *= factor
        return visits


def read_trace(path: Path) -> list[Visit]:
    """Arrivals and lengths of a Mooncake (JSON lines), Azure or BurstGPT (CSV) trace.

    Mooncake's hash_ids (blocks of 512 tokens) make the prompt tokens that an earlier request
    brought known. Raises FileFormatError naming the file and what is wrong.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.read(1)
            file.seek(0)
            rows = _mooncake(file) if first == "{" else _table(csv.DictReader(file))
            visits = sorted(map(_possible, rows), key=lambda visit: visit.arrival_us)
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"`trace` {path}: cannot be read: {error}") from None
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = f"no column {error}" if isinstance(error, KeyError) else error
        raise FileFormatError(
            f"`trace` {path}: not a Mooncake, Azure or BurstGPT trace ({reason})"
        ) from None
    if not visits:
        raise FileFormatError(f"`trace` {path}: has no requests")
    start = visits[0].arrival_us
    for visit in visits:
        visit.arrival_us -= start
    return visits


def _possible(visit: Visit) -> Visit:
    if not math.isfinite(visit.arrival_us):
        raise ValueError(f"a time is {visit.arrival_us}, must be a number")
    if visit.prompt < 0:
        raise ValueError(f"a prompt has {visit.prompt} tokens, must be at least 0")
    return visit


_BLOCK_TOKENS: Final = 512


def _mooncake(lines: Iterable[str]) -> Iterator[Visit]:
    known: set[int] = set()
    every: list[Mapping[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    for row in sorted(every, key=lambda row: float(row["timestamp"])):
        blocks = row.get("hash_ids", [])
        hits = next((i for i, block in enumerate(blocks) if block not in known), len(blocks))
        known.update(blocks)
        prompt = int(row["input_length"])
        yield Visit(
            prompt=prompt,
            decode=max(1, int(row["output_length"])),
            arrival_us=float(row["timestamp"]) * 1e3,
            cached=max(0, min(hits * _BLOCK_TOKENS, prompt - 1)),
        )


def _table(rows: csv.DictReader[str]) -> Iterator[Visit]:
    columns = set(rows.fieldnames or ())
    azure = "ContextTokens" in columns
    prompt, decode = (
        ("ContextTokens", "GeneratedTokens") if azure else ("Request tokens", "Response tokens")
    )
    for row in rows:
        if int(row[decode]) < 1 or int(row[prompt]) < 1:
            continue
        seconds = (
            datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            if azure
            else float(row["Timestamp"])
        )
        yield Visit(prompt=int(row[prompt]), decode=int(row[decode]), arrival_us=seconds * 1e6)
