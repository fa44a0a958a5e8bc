"""Events of a trace that are layers of a collective, before they are joined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from weft.importer.events import Args
from weft.importer.sources import Kind

LAYER_KINDS: Final = frozenset(
    {Kind.RECORD, Kind.KERNEL, Kind.SHARED_MEMORY, Kind.GLOO, Kind.WRAPPER}
)


@dataclass(kw_only=True, slots=True)
class Layer:
    """One event that is a layer of a collective."""

    kind: Kind
    operation: str | None
    name: str
    thread: bytes
    start_us: float
    duration_us: float
    args: Args

    @property
    def end_us(self) -> float:
        return self.start_us + self.duration_us


@dataclass(kw_only=True)
class Layers:
    """All layers of a trace, by kind, in file order; launches by correlation id."""

    by_kind: dict[Kind, list[Layer]] = field(
        default_factory=lambda: {kind: [] for kind in LAYER_KINDS}
    )
    launches: dict[Any, float] = field(default_factory=dict)
