"""Calls added up to schedule rows, and the calls that belong to no row."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from statistics import median
from typing import Any, Final

from weft.importer.exchange import Everywhere, is_coordination
from weft.importer.layout_inference import RunLayout
from weft.importer.rank_trace import RankTrace, TracedCall
from weft.importer.sizes import Sizer, is_header
from weft.importer.sources import SIGNALS
from weft.vocabulary.schedule import OPERATIONS, Collective, Phase, Statistics, merge_rows

HEADER_RULE: Final = "pickled header of a pipeline transfer"
IDLE_RULE: Final = "a replica without requests runs a step of one row with the others"
COORDINATION_RULE: Final = "replicas agree on the tokens and graphs of the step"
SIGNAL_RULE: Final = "barriers and flags; they move no data of the model"
UNKNOWN_RULE: Final = "communication; its name does not tell the operation or the size"
MOST_BUSBW_GB_S: Final = 4000.0
"""No link of a GPU carries that; a greater figure means that the time is not the transfer's."""
_HEADER_DTYPES: Final = (None, "int64", "uint8")


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """A schedule row with what only a measurement has. Bandwidths in GB/s (1e9 bytes).

    algbw: message bytes over the median transfer (over the median duration where the
    waiting is not known: a lower bound); busbw: algbw times the correction factor; None
    where the times are the host's, or so short that no link could have carried it
    (``is_impossible``);
    exposed_us: total time a rank's device ran nothing but this (None on CPU).
    """

    row: Collective
    algbw_gb_s: float | None
    busbw_gb_s: float | None
    exposed_us: float | None
    overlapped_us: float | None
    is_impossible: bool = False

    def to_dict(self) -> dict[str, Any]:
        return self.row.to_dict() | {
            "algbw_gb_s": self.algbw_gb_s,
            "busbw_gb_s": self.busbw_gb_s,
            "exposed_us": self.exposed_us,
            "overlapped_us": self.overlapped_us,
        }


@dataclass(frozen=True, kw_only=True)
class OtherCalls:
    """Equal calls that are no row: control messages under a rule, or unexplained ones.

    ``ranks`` made them, the first at ``first_us`` on the clock of the rank's own trace.
    """

    op: str
    name: str
    stage: int
    phase: Phase
    count: int
    reason: str
    ranks: tuple[int, ...] = ()
    first_us: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ranks": list(self.ranks)}


@dataclass(kw_only=True)
class Tally:
    """Everything that the calls of all ranks add up to."""

    rows: list[MeasuredRow] = field(default_factory=list)
    control: list[OtherCalls] = field(default_factory=list)
    unexplained: list[OtherCalls] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)
    calls: dict[int, dict[int, list[tuple[Collective, float, float]]]] = field(default_factory=dict)
    """Rows of count 1 with their start and end, by rank and step: what a verdict looks for faults in."""


@dataclass
class _Cell:
    first: Collective
    counts: Counter[int] = field(default_factory=Counter)
    durations: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    transfers: list[float] = field(default_factory=list)
    overlapped: list[float] = field(default_factory=list)
    is_timed: bool = True


class Adder:
    """Adds the calls of all ranks up to the rows of their stages."""

    def __init__(self, run: RunLayout, sizer: Sizer, everywhere: Everywhere) -> None:
        self.run, self.layout, self.sizer = run, run.layout, sizer
        self.everywhere = everywhere
        self._cells: dict[tuple[Any, ...], _Cell] = {}
        self._others: dict[tuple[bool, OtherCalls], Counter[int]] = defaultdict(Counter)
        self._calls: dict[int, dict[int, list[tuple[Collective, float, float]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._first: dict[OtherCalls, float] = {}
        self._is_timed = True
        self._ranks_of_stage: dict[tuple[int, int], list[int]] = defaultdict(list)

    def tally(self, traces: Mapping[int, RankTrace]) -> Tally:
        self._is_timed = all(trace.is_timed for trace in traces.values())
        for rank, trace in sorted(traces.items()):
            place = self.layout.replica_of(rank), self.layout.stage_of(rank)
            self._ranks_of_stage[place].append(rank)
            for call in trace.calls:
                self._add(rank, trace, call)
        result = Tally(disagreements=list(self._disagreements()), calls=self._calls)
        result.rows = [self._measured(cell) for cell in self._in_order()]
        for (is_control, other), counts in self._others.items():
            calls = replace(
                other,
                count=max(counts.values()),
                ranks=tuple(sorted(counts)),
                first_us=round(self._first[other], 3) if self._is_timed else None,
            )
            (result.control if is_control else result.unexplained).append(calls)
        return result

    def _add(self, rank: int, trace: RankTrace, call: TracedCall) -> None:
        label = None if call.step is None else trace.busy_steps[call.step].label
        phase: Phase = "other" if label is None else label.phase
        stage = self.layout.stage_of(rank)
        if call.operation not in OPERATIONS:
            is_control = call.operation in (SIGNALS, "barrier")
            reason = SIGNAL_RULE if is_control else UNKNOWN_RULE
            self._other(rank, stage, phase, call, reason=reason, is_control=is_control)
            return
        if rule := self._control_rule(call, trace):
            self._other(rank, stage, phase, call, reason=rule, is_control=True)
            return
        kind, group_size = self.run.group_of(call, rank)
        every = self.everywhere.get((self.layout.replica_of(rank), call.step))
        for part, share in self._parts(rank, stage, phase, call):
            if kind == "ep" and label is not None:
                sizes = self.sizer.exchanged(part, label, every)
            else:
                sizes = [self.sizer.size(part, label, group_size)]
            for sized in sizes:
                row = Collective(
                    stage=stage,
                    phase=phase,
                    op=call.operation,
                    group=kind,
                    group_size=group_size,
                    count=1,
                    input_shape=sized.input_shape,
                    output_shape=sized.output_shape,
                    dtype=sized.dtype,
                    provenance=sized.provenance,
                    variant=call.variant,
                    fused=call.fused,
                )
                self._count(rank, row, call, share / len(sizes))

    def _parts(
        self, rank: int, stage: int, phase: Phase, call: TracedCall
    ) -> Iterator[tuple[TracedCall, float]]:
        """The tensors of a list transfer as calls, each with its share of the time."""
        if call.tensors is None:
            unsized_list = call.source == "shared-memory" and call.operation == "recv"
            number = self.sizer.tensors_per_transfer if unsized_list else 1
            for _ in range(number):
                yield call, 1 / number
            return
        is_transfer = call.operation in ("send", "recv")
        data = [tensor for tensor in call.tensors if not (is_transfer and is_header(tensor))]
        if len(data) < len(call.tensors):
            self._other(rank, stage, phase, call, reason=HEADER_RULE, is_control=True)
        for shape, dtype in data:
            yield replace(call, input_shape=shape, dtype=dtype, tensors=None), 1 / len(data)

    def _control_rule(self, call: TracedCall, trace: RankTrace) -> str | None:
        if self._is_header(call, trace):
            return HEADER_RULE
        if call.is_idle:
            return IDLE_RULE
        is_known = self.sizer.conventions is not None
        return COORDINATION_RULE if is_known and is_coordination(call, self.run, trace) else None

    def _is_header(self, call: TracedCall, trace: RankTrace) -> bool:
        """Whether this announces a pipeline transfer: vLLM sends size and description over gloo."""
        if self.sizer.conventions is None or call.source != "gloo":
            return False
        if call.operation not in ("send", "recv"):
            return False
        tensor = call.input_shape
        small = call.dtype in _HEADER_DTYPES and (tensor is None or len(tensor) == 1)
        return small and (trace.backend == "nccl" or tensor is not None)

    def _count(self, rank: int, row: Collective, call: TracedCall, share: float) -> None:
        cell = self._cells.setdefault(row.key, _Cell(row))
        if call.step is not None:
            self._calls[rank][call.step].append((cell.first, call.start_us, call.end_us))
        cell.counts[rank] += 1
        cell.is_timed &= call.on_device or call.source != "backend"
        if self._is_timed:
            cell.durations.append(call.duration_us * share)
        if call.wait_us is not None and call.transfer_us is not None:
            cell.waits.append(call.wait_us * share)
            cell.transfers.append(call.transfer_us * share)
        if call.overlapped_us is not None:
            cell.overlapped.append(call.overlapped_us * share)

    def _other(
        self,
        rank: int,
        stage: int,
        phase: Phase,
        call: TracedCall,
        *,
        reason: str,
        is_control: bool = False,
    ) -> None:
        other = OtherCalls(
            op=call.operation, name=call.name, stage=stage, phase=phase, count=1, reason=reason
        )
        self._others[is_control, other][rank] += 1
        self._first[other] = min(self._first.get(other, call.start_us), call.start_us)

    def _in_order(self) -> list[_Cell]:
        by_key = {cell.first.key: cell for cell in self._cells.values()}
        return [by_key[row.key] for row in merge_rows(cell.first for cell in by_key.values())]

    def _disagreements(self) -> Iterator[str]:
        """Ranks of one stage of one replica must do the same."""
        for cell, ranks in product(self._cells.values(), self._ranks_of_stage.values()):
            row, counts = cell.first, {rank: cell.counts[rank] for rank in ranks}
            if len(set(counts.values())) > 1:
                listed = ", ".join(f"rank {rank} {count}" for rank, count in counts.items())
                yield (
                    f"ranks of stage {row.stage} disagree on {row.phase} {row.op} "
                    f"{row.input_shape}: {listed} calls"
                )

    def _is_room(self, row: Collective) -> bool:
        """Whether the bytes are those that there is room for: of rows exchanged as weft does."""
        ways = self.sizer.conventions
        own = ways is not None and ways.expert_exchange == "all_to_all"
        return own and row.op == "all_to_all" and row.variant is None

    def _measured(self, cell: _Cell) -> MeasuredRow:
        num_ranks = len(cell.counts)
        known = bool(cell.waits) and len(cell.waits) == len(cell.durations)
        row = replace(
            cell.first,
            count=max(cell.counts.values()),
            duration_us=_statistics(cell.durations, num_ranks),
            wait_us=_statistics(cell.waits, num_ranks) if known else None,
            transfer_us=_statistics(cell.transfers, num_ranks) if known else None,
            bound="upper" if self._is_room(cell.first) or (cell.durations and not known) else None,
        )
        times = row.transfer_us or row.duration_us
        algbw = None
        if cell.is_timed and times and times.median > 0 and row.message_bytes is not None:
            algbw = row.message_bytes / times.median / 1e3
        busbw = None if algbw is None or row.correction is None else algbw * row.correction
        is_impossible = (busbw or algbw or 0.0) > MOST_BUSBW_GB_S
        if is_impossible:
            algbw = busbw = None
        overlapped = round(sum(cell.overlapped) / num_ranks, 3) if cell.overlapped else None
        total = row.duration_us.total if row.duration_us else 0.0
        return MeasuredRow(
            row=row,
            algbw_gb_s=None if algbw is None else round(algbw, 6),
            busbw_gb_s=None if busbw is None else round(busbw, 6),
            exposed_us=None if overlapped is None else round(total - overlapped, 3),
            overlapped_us=overlapped,
            is_impossible=is_impossible,
        )


def _statistics(values: Sequence[float], num_ranks: int) -> Statistics | None:
    """Spread over all calls of all ranks; the total is what one rank spends (the mean)."""
    if not values:
        return None
    return Statistics(
        min=round(min(values), 3),
        median=round(median(values), 3),
        max=round(max(values), 3),
        total=round(sum(values) / num_ranks, 3),
    )
