"""Time of one step on every pipeline stage: operators, collectives, launch and host."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache

from weft.closed_form.schedule import closed_form
from weft.predict.accelerator import Accelerator
from weft.predict.collectives import Pricing
from weft.predict.engine_profile import EngineProfile
from weft.predict.operators import (
    PartTimes,
    Shard,
    Step,
    embedding_times,
    head_times,
    layer_times,
)
from weft.predict.quantity import root_sum_square
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective
from weft.vocabulary.workload import Workload


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
class StageTime:
    """One step on one stage, in µs. ``hop_us`` is the way to the next stage (``sends`` and host)."""

    parts: PartTimes
    collectives: tuple[CollectiveTime, ...]
    sends: tuple[CollectiveTime, ...]
    hop_us: float
    fixed_us: float
    launch_us: float

    @property
    def communication_us(self) -> float:
        return sum(item.time_us for item in self.collectives)

    @property
    def device_us(self) -> float:
        return self.parts.total_us + self.communication_us + self.fixed_us

    @property
    def busy_us(self) -> float:
        """What the stage is occupied for: the device's work, or the host launching it."""
        return max(self.device_us, self.launch_us)


@dataclass(frozen=True, kw_only=True)
class StepTimer:
    """Times steps of one model on one layout, accelerator, fabric and engine."""

    spec: ModelSpec
    layout: Layout
    accelerator: Accelerator
    pricing: Pricing
    profile: EngineProfile
    weight_dtype: str
    _layers: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        stages = self.layout.layers_of_stages(self.spec.num_layers)
        object.__setattr__(self, "_layers", tuple(len(stage) for stage in stages))

    @property
    def shard(self) -> Shard:
        layout = self.layout
        return Shard(
            spec=self.spec,
            tp=layout.tp,
            sp=layout.sp,
            ep=layout.ep,
            weight_dtype=self.weight_dtype,
        )

    def stages(self, step: Step) -> list[StageTime]:
        """The step on every stage. A step with prefill is launched layer by layer."""
        shard, last = self.shard, len(self._layers) - 1
        layer = layer_times(shard, step, self.accelerator)
        rows = self._collectives(step)
        stages = []
        for index, count in enumerate(self._layers):
            parts = PartTimes().plus(layer, count)
            if index == 0:
                parts = parts.plus(embedding_times(shard, step, self.accelerator))
            if index == last:
                parts = parts.plus(head_times(shard, step, self.accelerator))
            stages.append(self._stage(step, parts, rows[index], count, index == last))
        return stages

    def _stage(
        self,
        step: Step,
        parts: PartTimes,
        rows: list[CollectiveTime],
        num_layers: int,
        is_last: bool,
    ) -> StageTime:
        profile = self.profile
        fixed = 0.0
        if is_last:
            fixed = profile.step_us.value + step.sequences * profile.sequence_us.value
        launch = num_layers * profile.layer_launch_us.value if step.prefill_tokens else 0.0
        sends = tuple(row for row in rows if row.op == "send")
        return StageTime(
            parts=parts,
            collectives=tuple(row for row in rows if row.op != "send"),
            sends=sends,
            hop_us=0.0 if is_last else sum(row.time_us for row in sends) + profile.hop_us.value,
            fixed_us=fixed,
            launch_us=launch,
        )

    def _collectives(self, step: Step) -> list[list[CollectiveTime]]:
        rows = max(1, round(step.rows))
        sequences = max(1, min(round(step.sequences), rows))
        stages: list[list[CollectiveTime]] = [[] for _ in self._layers]
        for row in step_schedule(
            self.spec, self.layout, self.profile.conventions, rows, sequences
        ):
            price = self.pricing.price(row, self.layout)
            if price.time_us:
                stages[row.stage].append(_times(row, price.time_us, price.deviation_us, price.algorithm))
        return stages


def _times(row: Collective, time_us: float, deviation_us: float, algorithm: str) -> CollectiveTime:
    return CollectiveTime(
        op=row.op,
        group=f"{row.group}{row.group_size}",
        message_bytes=row.message_bytes or 0,
        count=row.count,
        time_us=row.count * time_us,
        deviation_us=row.count * deviation_us,
        algorithm=algorithm,
    )


@lru_cache(maxsize=4096)
def step_schedule(
    spec: ModelSpec, layout: Layout, engine: str, rows: int, sequences: int
) -> tuple[Collective, ...]:
    """The closed form's collectives of one step of ``rows`` tokens of ``sequences`` prompts.

    Rows are split as evenly as whole tokens allow (the closed form has equal prompts).
    """
    tokens = min(-(-rows // sequences), spec.max_position - 1)
    load = Workload(prompt_tokens=max(tokens, 1), decode_tokens=1, batch=sequences)
    return closed_form(spec, layout, load, engine).collectives


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
