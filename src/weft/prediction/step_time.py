"""Time of one step on every pipeline stage: operators, collectives, launch and host."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from weft.closed_form.schedule import rows_of_steps
from weft.closed_form.stage_step import StepRows
from weft.prediction.accelerator import Accelerator
from weft.prediction.collectives import Price, Pricing
from weft.prediction.engine_device import EngineDevice, engine_device
from weft.prediction.engine_profile import EngineProfile
from weft.prediction.operators import (
    PartTimes,
    Shard,
    StepLoad,
    embedding_times,
    head_times,
    layer_times,
)
from weft.prediction.quantity import root_sum_square
from weft.vocabulary.conventions import engine_named
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective
from weft.vocabulary.speculation import Speculation


@dataclass(frozen=True, kw_only=True)
class CollectiveTime:
    """All calls of one kind in one step: µs, one standard deviation, and the algorithm."""

    op: str
    group: str
    message_bytes: int
    count: int
    time_us: float
    deviation_us: float
    algorithm: str


@dataclass(frozen=True, kw_only=True)
class StageKind:
    """What tells one pipeline stage from another."""

    is_first: bool
    is_last: bool
    num_layers: int


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """One step on one stage, in µs.

    hop_us: the way to the next stage (``sends`` and host). device_us: the device's work;
    host_us: the host's, beside it.
    """

    parts: PartTimes
    collectives: tuple[CollectiveTime, ...]
    sends: tuple[CollectiveTime, ...]
    hop_us: float
    fixed_us: float
    device_us: float
    host_us: float

    @property
    def busy_us(self) -> float:
        """What the stage is occupied for: the device's work, or the host launching it."""
        return max(self.device_us, self.host_us)


@dataclass(frozen=True, kw_only=True)
class StepTimer:
    """Times steps of one model on one layout, accelerator, fabric and engine."""

    spec: ModelSpec
    layout: Layout
    accelerator: Accelerator
    pricing: Pricing
    profile: EngineProfile
    speculation: Speculation | None = None
    cache_dtype: str | None = None
    _known: dict[StepLoad, list[StageTime]] = field(default_factory=dict, repr=False)
    _calls: dict[tuple[int, int, int, int, bool], dict[StageKind, list[CollectiveTime]]] = field(
        default_factory=dict, repr=False
    )

    @cached_property
    def shard(self) -> Shard:
        return Shard(spec=self.spec, layout=self.layout, cache_dtype=self.cache_dtype)

    @cached_property
    def device(self) -> EngineDevice:
        all_reduces = self.layout.tp > 1 and self.layout.sp == 1
        return engine_device(self.accelerator, self.profile, all_reduces=all_reduces)

    def stages(self, step: StepLoad) -> list[StageTime]:
        """The step on every stage; prefill and sequence parallelism are launched layer by layer."""
        if step not in self._known:
            self._known[step] = self._stages(step)
        return self._known[step]

    def _stages(self, step: StepLoad) -> list[StageTime]:
        layer = layer_times(self.shard, step, self.device)
        rows = self._collectives(step)
        kinds = stage_kinds(self.layout, self.spec.num_layers)
        times = {kind: self._stage(step, layer, rows[kind], kind) for kind in set(kinds)}
        return [times[kind] for kind in kinds]

    def _stage(
        self, step: StepLoad, layer: PartTimes, rows: list[CollectiveTime], kind: StageKind
    ) -> StageTime:
        profile = self.profile
        parts = PartTimes().plus(layer, kind.num_layers)
        fixed = 0.0
        if kind.is_first:
            parts = parts.plus(embedding_times(self.shard, step, self.device))
        if kind.is_last:
            parts = parts.plus(head_times(self.shard, step, self.device)).plus(self._drafts(step))
            fixed = profile.step_us.value + step.sequences * profile.sequence_us.value
        if self.layout.pp > 1:
            fixed += profile.stage_us.value
        graph = profile.prompt_graph if step.prefill_tokens else profile.decode_graph
        host = self.accelerator.host_step_us.value
        if not graph or self.layout.sp > 1:
            launches = kind.num_layers * profile.layer_launches.value
            host += launches * self.accelerator.launch_us.value
        sends = tuple(row for row in rows if row.op == "send")
        device = parts.total_us + fixed + sum(row.time_us for row in rows if row.op != "send")
        hop = sum(row.time_us for row in sends) + profile.hop_us.value
        return StageTime(
            parts=parts,
            collectives=tuple(row for row in rows if row.op != "send"),
            sends=sends,
            hop_us=0.0 if kind.is_last else hop,
            fixed_us=fixed,
            device_us=device,
            host_us=host,
        )

    def _drafts(self, step: StepLoad) -> PartTimes:
        """The passes of a draft layer, with the model's head, for every sequence."""
        drafts = self.speculation
        if drafts is None or not drafts.has_layer or not step.decode_sequences:
            return PartTimes()
        shard = replace(self.shard, spec=drafts.layer_of(self.spec))
        one = replace(
            step, decode_rows=1, prefill_tokens=0.0, prefill_sequences=0.0, everywhere=0.0
        )
        each = layer_times(shard, one, self.device).plus(head_times(shard, one, self.device))
        return PartTimes().plus(each, drafts.num_drafts)

    def _collectives(self, step: StepLoad) -> dict[StageKind, list[CollectiveTime]]:
        rows = max(1, round(step.rows))
        sequences = max(1, min(round(step.logit_rows), rows))
        requests = max(1, round(step.sequences))
        has_past = step.decode_sequences > 0 or step.prefill_context > rows
        key = (rows, sequences, requests, round(step.everywhere), has_past)
        if key not in self._calls:
            names = self.spec, self.layout, self.profile.conventions
            schedule = step_schedule(*names, *key, self.speculation)
            self._calls[key] = {kind: self._priced(calls) for kind, calls in schedule.items()}
        return self._calls[key]

    def _priced(self, calls: tuple[Collective, ...]) -> list[CollectiveTime]:
        share = self.profile.communication_share.value
        prices = [(row, self.pricing.price(row, self.layout)) for row in calls]
        return [_times(row, price, share) for row, price in prices if price.time_us]


def _times(row: Collective, price: Price, share: float) -> CollectiveTime:
    return CollectiveTime(
        op=row.op,
        group=f"{row.group}{row.group_size}",
        message_bytes=row.message_bytes or 0,
        count=row.count,
        time_us=row.count * price.time_us * share,
        deviation_us=row.count * price.deviation_us * share,
        algorithm=price.algorithm,
    )


@lru_cache(maxsize=512)
def stage_kinds(layout: Layout, num_layers: int) -> tuple[StageKind, ...]:
    """The kind of every stage, in order."""
    stages = layout.layers_of_stages(num_layers)
    last = len(stages) - 1
    return tuple(
        StageKind(is_first=index == 0, is_last=index == last, num_layers=len(layers))
        for index, layers in enumerate(stages)
    )


@lru_cache(maxsize=4096)
def step_schedule(
    spec: ModelSpec,
    layout: Layout,
    engine: str,
    rows: int,
    sequences: int,
    requests: int,
    everywhere: int,
    has_past: bool,
    speculation: Speculation | None,
) -> dict[StageKind, tuple[Collective, ...]]:
    """The closed form's collectives of one step of ``rows`` tokens, by kind of stage.

    Long pipelines repeat few kinds of stage, so one stage of each kind is asked for. Experts over
    replicas are priced as gathered and scattered in engines whose own way is not described.
    """
    kinds = stage_kinds(layout, spec.num_layers)
    first_of = {kind: kinds.index(kind) for kind in kinds}
    step = StepRows(
        phase="mixed",
        rows=rows,
        sequences=sequences,
        count=1,
        everywhere=everywhere or None,
        has_past=has_past,
        requests=requests,
    )
    conventions = engine_named(engine)
    if not conventions.spreads_experts:
        conventions = replace(conventions, gathers_replicas=True)
    found = rows_of_steps(spec, layout, [step], conventions, first_of.values(), speculation)
    return {
        kind: tuple(row for row in found if row.stage == stage) for kind, stage in first_of.items()
    }


def merge_collectives(items: list[CollectiveTime]) -> list[CollectiveTime]:
    """Add up equal kinds of calls."""
    groups: dict[tuple[str, str, int, str], list[CollectiveTime]] = defaultdict(list)
    for item in items:
        groups[item.op, item.group, item.message_bytes, item.algorithm].append(item)
    return [
        CollectiveTime(
            op=key[0],
            group=key[1],
            message_bytes=key[2],
            algorithm=key[3],
            count=sum(item.count for item in same),
            time_us=sum(item.time_us for item in same),
            deviation_us=root_sum_square(item.deviation_us for item in same),
        )
        for key, same in groups.items()
    ]
