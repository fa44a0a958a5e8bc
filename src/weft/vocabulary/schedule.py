"""Schedule: the collectives of one request, row by row (format ``weft.schedule/1``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.layout import GroupKind, Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.workload import Workload

SCHEMA: Final = "weft.schedule/1"

Source = Literal["closed-form", "dry-run", "run", "import"]
Phase = Literal["prefill", "decode", "mixed", "other"]
Provenance = Literal["formula", "metadata", "shape", "model"]
Operation = Literal[
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "gather",
    "broadcast",
    "send",
    "recv",
    "all_to_all",
    "reduce",
    "scatter",
]

PHASES: Final[tuple[Phase, ...]] = ("prefill", "decode", "mixed", "other")
OPERATIONS: Final[tuple[Operation, ...]] = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "gather",
    "broadcast",
    "send",
    "recv",
    "all_to_all",
    "reduce",
    "scatter",
)


def correction_factor(op: Operation, group_size: int) -> float:
    """nccl-tests' bus factor: bytes that must cross a link per byte of message."""
    n = group_size
    if op == "all_reduce":
        return 2 * (n - 1) / n
    if op in ("all_gather", "reduce_scatter", "all_to_all"):
        return (n - 1) / n
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Summary of times in microseconds."""

    min: float
    median: float
    max: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Collective:
    """``count`` equal calls that one rank of ``stage`` makes in ``phase``.

    Shapes are per call, in elements; ``input_shape`` is what the rank passes in and
    ``output_shape`` what it holds afterwards. Times are there only for rows that
    were measured; ``bound`` is "upper" where a time includes waiting for peers, and where the
    bytes are those that there is room for (weft's exchange of rows with experts). ``fused``
    names what is done in the same call (``residual_rms_norm``), in a row where that differs for
    some of its calls; it does not tell rows apart.
    ``group_size`` is None where a trace does not tell it; ``variant`` names a library's own
    form of the operation.
    """

    stage: int
    phase: Phase
    op: Operation
    group: GroupKind
    group_size: int | None
    count: int
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None
    dtype: str | None
    provenance: Provenance
    duration_us: Statistics | None = None
    wait_us: Statistics | None = None
    transfer_us: Statistics | None = None
    bound: Literal["upper"] | None = None
    variant: str | None = None
    fused: str | None = field(default=None, compare=False)

    @property
    def message_bytes(self) -> int | None:
        """The size that the correction factor applies to: the output of an all-gather, else the input."""
        shape = self.output_shape if self.op == "all_gather" else self.input_shape
        if shape is None or self.dtype is None:
            return None
        return math.prod(shape) * element_bytes(self.dtype)

    @property
    def correction(self) -> float | None:
        return None if self.group_size is None else correction_factor(self.op, self.group_size)

    @property
    def volume_bytes(self) -> float | None:
        size, factor = self.message_bytes, self.correction
        return None if size is None or factor is None else self.count * size * factor

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rows the same kind of call."""
        return (
            self.stage,
            self.phase,
            self.op,
            self.group,
            self.group_size,
            self.input_shape,
            self.output_shape,
            self.dtype,
            self.variant,
        )

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "stage": self.stage,
            "phase": self.phase,
            "op": self.op,
            "group": self.group,
            "group_size": self.group_size,
            "count": self.count,
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            "output_shape": None if self.output_shape is None else list(self.output_shape),
            "dtype": self.dtype,
            "message_bytes": self.message_bytes,
            "correction": self.correction,
            "volume_bytes": _whole(self.volume_bytes),
            "provenance": self.provenance,
        }
        if self.variant is not None:
            row["variant"] = self.variant
        if self.duration_us is not None:
            row["duration_us"] = asdict(self.duration_us)
            row["wait_us"] = None if self.wait_us is None else asdict(self.wait_us)
            row["transfer_us"] = None if self.transfer_us is None else asdict(self.transfer_us)
        if self.duration_us is not None or self.bound is not None:
            row["bound"] = self.bound
        if self.fused is not None:
            row["fused"] = self.fused
        return row


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Volume by the published convention.

    All-reduce rows of the first stage that has some, gather and broadcast rows of the
    last, all other rows of one rank of each stage summed over the stages; recv rows are
    the other end of send rows and are not counted again.
    """

    volume_bytes: float
    by_op: dict[str, float]
    by_phase: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Every collective of one workload on one layout, and where the rows come from.

    speculation: what decode steps guess; prefill_layout: of the ranks that do the
    prompts, where those are others (their rows have the phase ``prefill``).
    """

    source: Source
    engine: str
    model: ModelSpec
    layout: Layout
    workload: Workload
    collectives: tuple[Collective, ...]
    unexplained: tuple[dict[str, Any], ...] = field(default=())
    speculation: Speculation | None = None
    prefill_layout: Layout | None = None

    @property
    def totals(self) -> Totals:
        by_op: Counter[str] = Counter()
        by_phase: Counter[str] = Counter()
        for row in self.collectives:
            if row.volume_bytes is not None and self._counts(row):
                by_op[row.op] += row.volume_bytes  # type: ignore[assignment]
                by_phase[row.phase] += row.volume_bytes  # type: ignore[assignment]
        total = sum(by_op.values())
        return Totals(volume_bytes=total, by_op=dict(by_op), by_phase=dict(by_phase))

    def _counts(self, row: Collective) -> bool:
        if row.op == "recv":
            return False
        stages = [other.stage for other in self.collectives if other.op == row.op]
        if row.op == "all_reduce":
            return row.stage == min(stages)
        return row.op not in ("gather", "broadcast") or row.stage == max(stages)

    @property
    def _tells_volume(self) -> bool:
        rows = self.collectives
        return not rows or any(row.volume_bytes is not None for row in rows)

    def to_dict(self) -> dict[str, Any]:
        """The contract's JSON object (``schedule.schema.json``)."""
        totals = self.totals
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "source": self.source,
            "engine": self.engine,
            "model": {
                "name": self.model.name,
                "num_layers": self.model.num_layers,
                "hidden_size": self.model.hidden_size,
                "vocab_size": self.model.vocab_size,
            },
            "layout": _degrees(self.layout),
            "workload": asdict(self.workload),
            "collectives": [row.to_dict() for row in self.collectives],
            "totals": {
                "volume_bytes": _whole(totals.volume_bytes) if self._tells_volume else None,
                "by_op": {key: _whole(value) for key, value in totals.by_op.items()},
                "by_phase": {key: _whole(value) for key, value in totals.by_phase.items()},
            },
        }
        if self.speculation is not None:
            document["speculation"] = self.speculation.to_dict()
        if self.prefill_layout is not None:
            document["prefill_layout"] = _degrees(self.prefill_layout)
        if self.source == "import":
            document["unexplained"] = list(self.unexplained)
        return document


def _degrees(layout: Layout) -> dict[str, int]:
    names = ("tp", "pp", "sp", "ep", "dp", "nodes", *(("dcp",) if layout.dcp > 1 else ()))
    return {name: getattr(layout, name) for name in names}


def merge_rows(rows: Iterable[Collective]) -> tuple[Collective, ...]:
    """Add up the counts of equal rows; order by stage, phase, operation and size."""
    counts: Counter[tuple[Any, ...]] = Counter()
    first: dict[tuple[Any, ...], Collective] = {}
    fused: dict[tuple[Any, ...], str | None] = {}
    for row in rows:
        counts[row.key] += row.count
        first.setdefault(row.key, row)
        fused[row.key] = fused.get(row.key) or row.fused
    merged = [
        replace(row, count=counts[key], fused=fused[key])
        for key, row in first.items()
        if counts[key]
    ]
    return tuple(sorted(merged, key=_order))


def _order(row: Collective) -> tuple[Any, ...]:
    return (
        row.stage,
        PHASES.index(row.phase),
        OPERATIONS.index(row.op),
        row.group,
        -(row.message_bytes or 0),
        row.input_shape or (),
        row.dtype or "",
    )


def _whole(value: float | None) -> float | int | None:
    if value is None:
        return None
    rounded = round(value)
    return rounded if abs(value - rounded) < 1e-6 * max(1.0, abs(value)) else value
