"""Events of a trace that are layers of a collective, before they are joined."""

from __future__ import annotations

from array import array
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from weft.importer.events import Args
from weft.importer.sources import UNKNOWN, Kind, Moved

LAYER_KINDS: Final = frozenset(
    {Kind.RECORD, Kind.KERNEL, Kind.SHARED_MEMORY, Kind.GLOO, Kind.BACKEND, Kind.WRAPPER}
)


@dataclass(kw_only=True, slots=True)
class Layer:
    """One event that is a layer of a collective."""

    kind: Kind
    traffic: Moved | None
    name: str
    thread: bytes
    start_us: float
    duration_us: float
    args: Args

    @property
    def operation(self) -> str:
        return self.traffic.operation if self.traffic else UNKNOWN

    @property
    def end_us(self) -> float:
        return self.start_us + self.duration_us


@dataclass(kw_only=True)
class Launches:
    """When and on which thread the host launched kernels, by correlation id."""

    correlations: array[int] = field(default_factory=lambda: array("q"))
    times_us: array[float] = field(default_factory=lambda: array("d"))
    threads: list[bytes] = field(default_factory=list)

    def add(self, correlation: int, time_us: float, thread: bytes) -> None:
        self.correlations.append(correlation)
        self.times_us.append(time_us)
        same = self.threads and self.threads[-1] == thread
        self.threads.append(self.threads[-1] if same else thread)

    def of(self, wanted: Collection[Any]) -> dict[int, tuple[bytes, float]]:
        """Thread and time of the launches of these correlation ids."""
        return {
            correlation: (self.threads[index], self.times_us[index])
            for index, correlation in enumerate(self.correlations)
            if correlation in wanted
        }


@dataclass(kw_only=True)
class Layers:
    """All layers of a trace, by kind, in file order; launches of graphs and of kernels."""

    by_kind: dict[Kind, list[Layer]] = field(
        default_factory=lambda: {kind: [] for kind in LAYER_KINDS}
    )
    graphs: dict[Any, float] = field(default_factory=dict)
    launches: Launches = field(default_factory=Launches)
