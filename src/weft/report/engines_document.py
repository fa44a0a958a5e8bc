"""``weft.study.engines/1`` as typed values, so that a damaged file is one clear line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weft.errors import FileFormatError
from weft.report.node import Node

Number = Annotated[float, msgspec.Meta(ge=-1e18, le=1e18)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10**18)]


class Quantile(msgspec.Struct, frozen=True):
    value: Number
    low: Number | None = None
    high: Number | None = None


class Metric(msgspec.Struct, frozen=True):
    p50: Quantile
    p99: Quantile


class Figures(msgspec.Struct, frozen=True):
    """Under weft's definitions."""

    ttft_ms: Metric | None = None
    tpot_ms: Metric | None = None
    e2e_ms: Metric | None = None

    def median(self, metric: str) -> float | None:
        found: Metric | None = getattr(self, metric)
        return None if found is None else found.p50.value

    def p99(self, metric: str) -> float | None:
        found: Metric | None = getattr(self, metric)
        return None if found is None else found.p99.value


class Definitions(msgspec.Struct, frozen=True):
    weft: Figures


class Throughput(msgspec.Struct, frozen=True):
    requests_per_s: Number | None = None
    output_tokens_per_s: Number | None = None


class Result(msgspec.Struct, frozen=True):
    definitions: Definitions
    throughput: Throughput


class LoadRecord(msgspec.Struct, frozen=True):
    result: Result
    concurrency: Count | None = None
    rate_per_s: Number | None = None

    @property
    def figures(self) -> Figures:
        return self.result.definitions.weft


class Phase(msgspec.Struct, frozen=True):
    """Microseconds a step."""

    phase: str
    steps: Count
    compute_us: Number
    communication_us: Number
    idle_us: Number
    waiting_us: Number | None = None

    @property
    def parts(self) -> dict[str, float]:
        return {
            "compute": self.compute_us,
            "communication": self.communication_us,
            "waiting": self.waiting_us or 0.0,
            "idle": self.idle_us,
        }

    @property
    def bound(self) -> str:
        """The largest part."""
        return max(self.parts, key=lambda part: self.parts[part])

    def share(self, *names: str) -> float:
        """Of the step, that of these parts together."""
        total = sum(self.parts.values())
        return sum(self.parts[name] for name in names) / total if total else 0.0


class Trace(msgspec.Struct, frozen=True):
    conforms: bool | None = None
    verdict: str | None = None
    explanation: str | None = None
    failed: str | None = None
    phases: tuple[Phase, ...] = ()

    @property
    def decode(self) -> Phase | None:
        return next((phase for phase in self.phases if phase.phase == "decode"), None)


class CaseRecord(msgspec.Struct, frozen=True):
    engine: str
    layout: str
    workload: str
    ranks: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    status: Literal["done", "failed", "left out"]
    expected: dict[str, Any]
    reason: str | None = None
    note: str = ""
    loads: tuple[LoadRecord, ...] = ()
    trace: Trace | None = None
    predicted: dict[str, Any] | None = None

    @property
    def schedule(self) -> Node:
        """What the batch of the workload should send."""
        return Node(self.expected, f"expected of {self.place}")

    @property
    def place(self) -> str:
        return f"{self.engine} {self.layout}"

    @property
    def alone(self) -> Figures | None:
        """Of the closed loop with the fewest open requests."""
        closed = [load for load in self.loads if load.concurrency]
        return min(closed, key=lambda load: load.concurrency or 0).figures if closed else None

    @property
    def busiest(self) -> LoadRecord | None:
        """The load with the most tokens a second."""
        return max(
            self.loads,
            key=lambda load: load.result.throughput.output_tokens_per_s or 0.0,
            default=None,
        )


class Study(msgspec.Struct, frozen=True):
    model: str
    cases: tuple[CaseRecord, ...]
    limits_ms: dict[
        Literal["ttft_ms", "tpot_ms", "e2e_ms"], Annotated[float, msgspec.Meta(gt=0, le=1e18)]
    ] = {}

    @property
    def done(self) -> list[CaseRecord]:
        return [case for case in self.cases if case.status == "done"]

    @property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(case.workload for case in self.cases))


def read_study(node: Node) -> Study:
    """The document's values; FileFormatError names the first that is wrong."""
    try:
        return msgspec.convert(node.value, Study)
    except msgspec.ValidationError as error:
        raise FileFormatError(f"{node.place}: {error}") from None
