"""What one rank's trace file says, reduced to its collectives and its steps."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from weft.importer.labels import StepLabel

Source = Literal["record", "kernel", "shared-memory", "gloo", "backend", "operator"]
Size = tuple[tuple[int, ...], str | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessGroup:
    """One communicator of the rank, as torch lists them in the trace."""

    description: str
    ranks: tuple[int, ...]


@dataclass(kw_only=True, slots=True)
class TracedCall:
    """One collective of one rank. Times in microseconds on the rank's own clock.

    ``host_us`` is when the host issued it (None where the trace does not link the
    kernel to its launch); ``overlapped_us`` is the part of a device kernel that ran
    beside compute kernels (None on CPU). ``tensors`` holds the parts of a list
    transfer; shapes are in elements. ``step`` is the number of the non-empty step that
    the call belongs to (see phases.py), ``precedes_step`` that it came before its label. ``gathers_slices`` marks
    the all-gather that puts the slices of a received tensor together, ``returns_rows`` the one
    after the experts; ``is_idle``: of a step that a replica without requests runs. ``wait_us`` and ``transfer_us`` are
    known only where the ranks it met are there too (see pairing.py); ``waited_for`` is the
    rank that came last. ``function_id`` is the profiler's number of the operator.
    """

    operation: str
    source: Source
    name: str
    start_us: float
    duration_us: float
    host_us: float | None = None
    on_device: bool = False
    variant: str | None = None
    fused: str | None = None
    overlapped_us: float | None = None
    group_name: str | None = None
    group_description: str | None = None
    ranks: tuple[int, ...] | None = None
    group_size: int | None = None
    peer: int | None = None
    dtype: str | None = None
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    input_elements: int | None = None
    output_elements: int | None = None
    tensors: tuple[Size, ...] | None = None
    step: int | None = None
    precedes_step: bool = False
    gathers_slices: bool = False
    returns_rows: bool = False
    is_idle: bool = False
    wait_us: float | None = None
    transfer_us: float | None = None
    waited_for: int | None = None
    function_id: int | None = None

    @property
    def end_us(self) -> float:
        return self.start_us + self.duration_us

    @property
    def num_ranks(self) -> int | None:
        """Size of the group, where the trace tells it."""
        return len(self.ranks) if self.ranks else self.group_size

    @property
    def issued_us(self) -> float:
        return self.start_us if self.host_us is None else self.host_us


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedStep:
    """One labelled forward pass: host span and, on CUDA, the span of its kernels."""

    label: StepLabel
    start_us: float
    end_us: float
    device_start_us: float | None = None
    device_end_us: float | None = None


@dataclass(kw_only=True)
class RankTrace:
    """Everything that later stages need of one file; of one without times only the order counts."""

    path: Path
    rank: int | None
    world_size: int | None
    backend: str | None
    engine_version: str | None
    num_events: int
    truncated: bool
    num_damaged: int
    groups: tuple[ProcessGroup, ...] = ()
    steps: list[TracedStep] = field(default_factory=list)
    calls: list[TracedCall] = field(default_factory=list)
    compute_starts: array[float] = field(default_factory=lambda: array("d"))
    compute_ends: array[float] = field(default_factory=lambda: array("d"))
    ignored: dict[str, int] = field(default_factory=dict)
    activation_dtype: str | None = None
    num_graph_launches: int = 0
    is_timed: bool = True

    @cached_property
    def busy_steps(self) -> list[TracedStep]:
        """The steps that run requests; the others are bookkeeping."""
        return [step for step in self.steps if not step.label.is_empty]

    @cached_property
    def on_device(self) -> bool:
        untimed = not self.is_timed and self.backend == "nccl"
        return untimed or bool(self.compute_starts) or any(call.on_device for call in self.calls)

    @cached_property
    def reduces_beside_gloo(self) -> bool:
        """Whether a model's sums go over the device or shared memory, so that gloo's are others."""
        return self.on_device or any(call.source == "shared-memory" for call in self.calls)
