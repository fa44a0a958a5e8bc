"""The schedule of a request in closed form, for any model, layout and engine.

Source: Xu et al., "Characterizing Communication Patterns in Distributed Large
Language Model Inference" (their tables are engine ``vllm-v0``). Symbols: L layers
of the stage, T token rows of the step, h hidden size, v vocabulary, t = tp, B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from weft.errors import WorkloadError
from weft.vocabulary.conventions import Conventions, engine_named
from weft.vocabulary.layout import GroupKind, Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective, Operation, Phase, Schedule, merge_rows
from weft.vocabulary.workload import Workload


def closed_form(
    spec: ModelSpec, layout: Layout, workload: Workload, engine: str = "weft"
) -> Schedule:
    """Every collective that one rank of each stage makes for ``workload``.

    Raises LayoutError or WorkloadError where the model cannot run that way.
    """
    layout.check_model(spec)
    check_length(spec, workload)
    conventions = engine_named(engine)
    return Schedule(
        source="closed-form",
        engine=engine,
        model=spec,
        layout=layout,
        workload=workload,
        collectives=rows_of_steps(spec, layout, _steps(workload, layout, conventions), conventions),
    )


def rows_of_steps(
    spec: ModelSpec,
    layout: Layout,
    steps: Iterable[StepRows],
    conventions: Conventions,
    stages: Iterable[int] | None = None,
) -> tuple[Collective, ...]:
    """The rows of any series of engine steps, on all stages or on the given ones."""
    chosen = range(layout.pp) if stages is None else stages
    all_steps = tuple(steps)
    return merge_rows(
        row
        for stage in chosen
        for step in all_steps
        for row in _StageStep(spec, layout, conventions, stage, step).rows()
    )


def check_length(spec: ModelSpec, workload: Workload) -> None:
    """Raise WorkloadError where prompt and decode exceed the model's positions."""
    length = workload.prompt_tokens + workload.decode_tokens
    if length > spec.max_position:
        raise WorkloadError(
            f"`prompt_tokens` {workload.prompt_tokens} `decode_tokens` {workload.decode_tokens}: {length} tokens "
            f"exceed the {spec.max_position} positions of {spec.name}"
        )


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """``count`` equal engine steps of ``rows`` token rows and ``sequences`` rows of logits.

    ``returns_ids`` is False for a step whose sampled ids no later step needs (a chunk
    of a prompt that is not its last). ``everywhere``: the rows of all expert-parallel ranks
    together, padded, where the replicas' steps differ; None where they are alike.
    """

    phase: Phase
    rows: int
    sequences: int
    count: int
    returns_ids: bool = True
    everywhere: int | None = None


def _steps(workload: Workload, layout: Layout, conventions: Conventions) -> Iterator[StepRows]:
    for batch in micro_batches(workload.batch, layout, conventions):
        prompt_rows = batch * workload.prompt_tokens
        yield StepRows(phase="prefill", rows=prompt_rows, sequences=batch, count=1)
        yield StepRows(phase="decode", rows=batch, sequences=batch, count=workload.num_decode_steps)


def micro_batches(batch: int, layout: Layout, conventions: Conventions) -> list[int]:
    """Sequences of each group of requests that goes through the pipeline by itself."""
    groups = layout.pp if conventions.micro_batches else 1
    sizes = [batch // groups + (index < batch % groups) for index in range(groups)]
    return [size for size in sizes if size]


class _StageStep:
    """What one rank of one stage sends in one kind of step."""

    def __init__(
        self, spec: ModelSpec, layout: Layout, conventions: Conventions, stage: int, step: StepRows
    ) -> None:
        self.spec, self.layout, self.conventions = spec, layout, conventions
        self.stage, self.step = stage, step
        self.is_first, self.is_last = stage == 0, stage == layout.pp - 1
        layers = layout.layers_of_stages(spec.num_layers)[stage]
        self.num_layers = len(layers)
        self.num_norms = spec.norm_reductions(layers) if layout.tp > 1 else 0
        self.exchange = conventions.exchange_of(spec, layout)
        exchanges = self.exchange in ("all_to_all", "all_gather", "kernels")
        self.num_exchanges = sum(spec.has_experts(layer) for layer in layers) if exchanges else 0

    def rows(self) -> Iterator[Collective]:
        if not self.is_first:
            yield from self._boundary("recv")
        if self.layout.sp > 1:
            yield from self._sequence_parallel_blocks()
        elif self.layout.tp > 1:
            shape = (self.step.rows, self.spec.hidden_size)
            yield self._call("all_reduce", "tp", self._blocks + self.is_first, shape, shape)
        if self.num_norms:
            sums = (self.step.rows, 2)
            yield self._call("all_reduce", "tp", self.num_norms, sums, sums, dtype="float32")
        if self.num_exchanges:
            yield from self._expert_blocks()
        if not self.is_last:
            yield from self._boundary("send")
        elif self.layout.tp > 1 and self.step.sequences:
            yield self._logits()
        if self.layout.pp > 1 and self.step.returns_ids:
            yield from self._sampled_ids()

    def _sequence_parallel_blocks(self) -> Iterator[Collective]:
        """Megatron sequence parallelism: reduce-scatter out of and all-gather into every block."""
        whole = (self._padded_rows, self.spec.hidden_size)
        part = (self._padded_rows // self.layout.tp, self.spec.hidden_size)
        yield self._call("reduce_scatter", "sp", self._blocks + self.is_first, whole, part)
        yield self._call("all_gather", "sp", self._blocks + self.is_last, part, whole)

    @property
    def _blocks(self) -> int:
        """Attention and feed-forward parts that are reduced over the group."""
        return 2 * self.num_layers - self.num_exchanges

    def _expert_blocks(self) -> Iterator[Collective]:
        """Rows and choices out to the experts, outputs back."""
        share, hidden = self._padded_rows // self.layout.tp, self.spec.hidden_size
        every = self.step.everywhere or self.layout.ep * share
        if self.exchange == "all_to_all":
            yield from self._to_all((every, hidden))
        elif self.exchange == "kernels":
            for variant, launches in self.conventions.expert_kernels:
                row = self._call("all_to_all", "ep", launches * self.num_exchanges, None, None)
                yield replace(row, dtype=None, variant=variant)
        else:
            yield from self._gathered((share, hidden), (every, hidden))
        if self.layout.sp == 1 and self.layout.tp > 1:
            whole = (self._padded_rows, hidden)
            yield self._call("all_gather", "tp", self.num_exchanges, (share, hidden), whole)

    def _to_all(self, there: tuple[int, int]) -> Iterator[Collective]:
        """Room for all rows of a rank at each."""
        gates = (there[0], self.spec.num_experts // self.layout.ep)
        yield self._call("all_to_all", "ep", 2 * self.num_exchanges, there, there)
        yield self._call("all_to_all", "ep", self.num_exchanges, gates, gates, dtype="float32")

    def _gathered(self, own: tuple[int, int], every: tuple[int, int]) -> Iterator[Collective]:
        """All rows and their experts' weights and ids at each rank."""
        chosen = self.spec.experts_per_token
        yield self._call("all_gather", "ep", self.num_exchanges, own, every)
        for dtype in ("float32", "int32"):
            shapes = (own[0], chosen), (every[0], chosen)
            yield self._call("all_gather", "ep", self.num_exchanges, *shapes, dtype=dtype)
        yield self._call("reduce_scatter", "ep", self.num_exchanges, every, own)

    def _boundary(self, op: Operation) -> Iterator[Collective]:
        count, tp = self.conventions.boundary_tensors, self.layout.tp
        rows, width = self.step.rows, self.spec.hidden_size
        if self.layout.sp > 1:
            part = (self._padded_rows // tp, width)
            yield self._call(op, "pp", count, part, part)
            return
        sliced = self.conventions.boundary_sliced and tp > 1
        part = (rows, width // tp) if sliced else (rows, width)
        yield self._call(op, "pp", count, part, part)
        if sliced and op == "recv":
            yield self._call("all_gather", "tp", count, part, (rows, width))

    def _logits(self) -> Collective:
        tp, sequences = self.layout.tp, self.step.sequences
        shard = self.conventions.logits_shard(self.spec.vocab_size, tp)
        if self.conventions.logits == "candidates":
            pairs = (sequences, 2)
            return self._call("all_gather", "tp", 1, pairs, (tp * sequences, 2), dtype="float32")
        if self.conventions.logits == "all_gather":
            return self._call("all_gather", "tp", 1, (sequences, shard), (sequences * tp, shard))
        rows = () if sequences == 1 else (sequences,)
        return self._call("gather", "tp", 1, (*rows, shard), (*rows, shard * tp))

    def _sampled_ids(self) -> Iterator[Collective]:
        if self.conventions.sampled_ids == "host":
            return
        ids = (self.step.sequences,)
        if self.conventions.sampled_ids == "broadcast":
            yield self._call("broadcast", "pp", 1, ids, ids, dtype="int64")
            return
        column, counts = (*ids, 1), (2, *ids)
        if self.conventions.sampled_ids == "broadcast_int32":
            yield self._call("broadcast", "pp", 1, column, column, dtype="int32")
            return
        yield self._call("broadcast", "pp", 1, column, column, dtype="int64")
        yield self._call("broadcast", "pp", 1, counts, counts, dtype="int32")

    @property
    def _padded_rows(self) -> int:
        """Token rows rounded up to a multiple of tp, so that each rank holds as many."""
        return -(-self.step.rows // self.layout.tp) * self.layout.tp

    def _call(
        self,
        op: Operation,
        group: GroupKind,
        calls_per_step: int,
        input_shape: tuple[int, ...] | None,
        output_shape: tuple[int, ...] | None,
        dtype: str | None = None,
    ) -> Collective:
        return Collective(
            stage=self.stage,
            phase=self.step.phase,
            op=op,
            group=group,
            group_size={"pp": self.layout.pp, "ep": self.layout.ep}.get(group, self.layout.tp),
            count=calls_per_step * self.step.count,
            input_shape=input_shape,
            output_shape=output_shape,
            dtype=dtype or self.spec.dtype,
            provenance="formula",
        )
