"""What one rank of one stage sends in one kind of step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from weft.vocabulary.attention_kinds import GroupedQuery, Latent
from weft.vocabulary.conventions import Conventions, bytes_of_dispatched_row
from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.layout import GroupKind, Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective, Operation, Phase
from weft.vocabulary.speculation import Speculation


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """``count`` equal engine steps of ``rows`` token rows and ``sequences`` rows of logits.

    ``returns_ids`` is False for a step whose sampled ids no later step needs (a chunk
    of a prompt that is not its last). ``everywhere``: the rows of all expert-parallel ranks
    together, padded, where the replicas' steps differ; None where they are alike. ``has_past``:
    whether its rows read a cache of positions before them (None: unless they are prompts).
    requests: that ``sequences`` belong to, where drafts are checked (None: as many).
    """

    phase: Phase
    rows: int
    sequences: int
    count: int
    returns_ids: bool = True
    everywhere: int | None = None
    has_past: bool | None = None
    requests: int | None = None


class StageStep:
    """The rows of one stage in one kind of step, of a model that may check drafts."""

    def __init__(
        self,
        spec: ModelSpec,
        layout: Layout,
        conventions: Conventions,
        stage: int,
        step: StepRows,
        speculation: Speculation | None = None,
    ) -> None:
        self.spec, self.layout, self.conventions = spec, layout, conventions
        self.stage, self.step, self.speculation = stage, step, speculation
        self.is_first, self.is_last = stage == 0, stage == layout.pp - 1
        self.layers = layout.layers_of_stages(spec.num_layers)[stage]
        self.exchange = conventions.exchange_of(layout)
        exchanges = self.exchange in ("all_to_all", "all_gather", "deepep", "kernels")
        with_experts = sum(spec.has_experts(layer) for layer in self.layers)
        self.num_exchanges = with_experts if exchanges else 0
        self.scatters = conventions.scatters_rows(spec, layout)
        self.joins = conventions.joins_rows(spec, layout)

    def rows(self) -> Iterator[Collective]:
        if not self.is_first:
            yield from self._boundary("recv")
        yield from self._layers()
        if not self.is_last:
            yield from self._boundary("send")
        elif self.step.sequences:
            yield from self._logits()
        if self.is_last and self.speculation is not None and self.speculation.has_layer:
            yield from self._draft_passes(self.speculation)
        if self.layout.pp > 1 and self.step.returns_ids:
            yield from self._sampled_ids()

    def _layers(self) -> Iterator[Collective]:
        """The blocks of the stage's layers, and the embedding on the first stage."""
        if self.layout.sp > 1:
            yield from self._sequence_parallel_blocks()
        elif self.scatters:
            yield from self._scattered_blocks()
        elif self.joins:
            yield from self._joined_blocks()
        elif self.layout.tp > 1:
            shape = (self.step.rows, self.spec.hidden_size)
            yield self._call("all_reduce", "tp", self._blocks + self.is_first, shape, shape)
        if self.layout.tp > 1 and (norms := self.spec.norm_reductions(self.layers)):
            sums = (self.step.rows, 2)
            yield self._call("all_reduce", "tp", norms, sums, sums, dtype="float32")
        if self.layout.dcp > 1 and self._has_past:
            for layer in self.layers:
                yield from self._shared_positions(layer)
        if self.num_exchanges:
            yield from self._expert_blocks()

    def _sequence_parallel_blocks(self) -> Iterator[Collective]:
        """Megatron sequence parallelism: reduce-scatter out of and all-gather into every block."""
        whole = (self._padded_rows, self.spec.hidden_size)
        part = (self._padded_rows // self.layout.tp, self.spec.hidden_size)
        yield self._call("reduce_scatter", "sp", self._blocks + self.is_first, whole, part)
        yield self._call("all_gather", "sp", self._blocks + self.is_last, part, whole)

    def _scattered_blocks(self) -> Iterator[Collective]:
        """Shares of the rows from attention through the experts to the next attention (vLLM)."""
        hidden, has_experts = self.spec.hidden_size, self.spec.has_experts
        rows, padded = self.step.rows, self._padded_rows
        share = padded // self.layout.tp
        blocks = 2 * (len(self.layers) - self.num_exchanges) + self.is_first
        yield self._call("all_reduce", "tp", blocks, (rows, hidden), (rows, hidden))
        experts = [layer for layer in self.layers if has_experts(layer)]
        count, own, every = len(experts), (share, hidden), (padded, hidden)
        yield self._call("reduce_scatter", "tp", count, every, own)
        again = sum(layer - 1 in experts for layer in experts)
        yield self._call("all_gather", "tp", again, own, every)
        both = (share, 2 * hidden), (padded, 2 * hidden)
        yield self._call("all_gather", "tp", count - again, *both)

    def _joined_blocks(self) -> Iterator[Collective]:
        """Rows of all replicas into every feed-forward block and back (SGLang)."""
        tp, hidden, padded = self.layout.tp, self.spec.hidden_size, self._padded_rows
        if tp > 1:
            rows = (self.step.rows, hidden)
            yield self._call("all_reduce", "tp", self.is_first, rows, rows)
        count = len(self.layers) - self.num_exchanges
        every, share = (self.layout.ep // tp * padded, hidden), (padded // tp, hidden)
        if self.step.everywhere:
            every = (-(-self.step.everywhere // self.layout.ep) * self.layout.ep, hidden)
        num_bytes = every[0] * hidden * element_bytes(self.spec.dtype)
        if self.conventions.sums_rows(self.layout, num_bytes, has_prompts=not self._has_past):
            yield self._call("all_reduce", "ep", 2 * count, every, every)
            return
        if tp > 1:
            yield self._call("reduce_scatter", "tp", count, (padded, hidden), share)
            yield self._call("all_gather", "tp", count, share, (padded, hidden))
        yield self._call("all_gather", "ep", count, share, every)
        yield self._call("reduce_scatter", "ep", count, every, share)

    @property
    def _blocks(self) -> int:
        """Attention and feed-forward parts that are reduced over the group."""
        return 2 * len(self.layers) - self.num_exchanges

    @property
    def _has_past(self) -> bool:
        return self.step.phase != "prefill" if self.step.has_past is None else self.step.has_past

    def _shared_positions(self, layer: int) -> Iterator[Collective]:
        """Queries to the ranks that hold other positions, softmax sums and outputs back (vLLM)."""
        kind, size, rows = self.spec.attention(layer), self.layout.dcp, self.step.rows
        if not isinstance(kind, GroupedQuery | Latent):
            return
        heads, (query, value) = kind.num_heads // self.layout.tp, kind.attended_sizes
        gathered, every = (rows, heads, query), (rows, size * heads, query)
        sums = (rows, size * heads)
        yield self._call("all_gather", "dcp", 1, gathered, every)
        yield self._call("all_gather", "dcp", 1, sums, (size * rows, sums[1]), dtype="float32")
        outputs = (size * heads, rows, value), (heads, rows, value)
        yield self._call("reduce_scatter", "dcp", 1, *outputs)

    def _expert_blocks(self) -> Iterator[Collective]:
        """Rows and choices out to the experts, outputs back."""
        share, hidden = self._padded_rows // self.layout.tp, self.spec.hidden_size
        every = self.step.everywhere or self.layout.ep * share
        if self.exchange == "all_to_all":
            yield from self._to_all((every, hidden))
        elif self.exchange == "deepep":
            shapes = self.conventions.deepep_shapes(
                self.spec, self.layout.ep, share, has_prompts=not self._has_past
            )
            for variant, shape, dtype in shapes:
                row = self._call("all_to_all", "ep", self.num_exchanges, shape, shape, dtype)
                yield replace(row, variant=variant, bound="upper")
        elif self.exchange == "kernels":
            for variant, launches in self.conventions.expert_kernels:
                row = self._call("all_to_all", "ep", launches * self.num_exchanges, None, None)
                yield replace(row, dtype=None, variant=variant)
        else:
            yield from self._gathered((share, hidden), (every, hidden))
        if self.layout.sp == 1 and self.layout.tp > 1 and not self.scatters:
            whole = (self._padded_rows, hidden)
            yield self._call("all_gather", "tp", self.num_exchanges, (share, hidden), whole)

    def _to_all(self, there: tuple[int, int]) -> Iterator[Collective]:
        """Room for all rows of a rank at each: bytes of rows with their choices out, sums back."""
        row_bytes = there[1] * element_bytes(self.spec.dtype)
        out = there[0], bytes_of_dispatched_row(row_bytes, self.spec.experts_per_token)
        for shape, dtype in ((out, "uint8"), (there, self.spec.dtype)):
            row = self._call("all_to_all", "ep", self.num_exchanges, shape, shape, dtype=dtype)
            yield replace(row, bound="upper")

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

    def _logits(self) -> Iterator[Collective]:
        group: GroupKind = "ep" if self.joins else "tp"
        size = self.layout.ep if self.joins else self.layout.tp
        rows = self.step.sequences
        if self.joins:
            rows *= self.layout.ep // self.layout.tp
            every = (rows, self.spec.hidden_size)
            yield self._call("all_reduce", "ep", 1, every, every)
        shard = self.conventions.logits_shard(self.spec.vocab_size, size)
        if size == 1:
            return
        if self.conventions.logits == "candidates":
            yield self._call("all_gather", group, 1, (rows, 2), (size * rows, 2), dtype="float32")
        elif self.conventions.logits == "all_gather":
            yield self._call("all_gather", group, 1, (rows, shard), (rows * size, shard))
        else:
            first = () if rows == 1 else (rows,)
            yield self._call("gather", group, 1, (*first, shard), (*first, shard * size))

    @property
    def _requests(self) -> int:
        return self.step.sequences if self.step.requests is None else self.step.requests

    def _draft_passes(self, speculation: Speculation) -> Iterator[Collective]:
        """One pass over the step's rows and one more a further draft, of a model of one layer."""
        layer, alone = (
            speculation.layer_of(self.spec),
            replace(self.layout, pp=1, stage_layers=None),
        )
        first = replace(self.step, sequences=self._requests, requests=None)
        later = replace(
            first,
            rows=self._requests,
            count=self.step.count * (speculation.num_drafts - 1),
            has_past=True,
        )
        for step in (first, later):
            if step.count:
                for row in StageStep(layer, alone, self.conventions, 0, step).rows():
                    yield replace(row, stage=self.stage)

    def _sampled_ids(self) -> Iterator[Collective]:
        how, speculation = self.conventions.sampled_ids, self.speculation
        if how == "host":
            return
        ids, column = (self.step.sequences,), (self._requests, 1)
        if speculation is not None:
            column = (self._requests, speculation.rows)
        if how == "broadcast":
            yield self._call("broadcast", "pp", 1, ids, ids, dtype="int64")
        elif how == "broadcast_int32":
            yield self._call("broadcast", "pp", 1, column, column, dtype="int32")
        else:
            counts = (2, self._requests)
            yield self._call("broadcast", "pp", 1, column, column, dtype="int64")
            yield self._call("broadcast", "pp", 1, counts, counts, dtype="int32")
        if speculation is not None and self.conventions.tells_drafts(speculation.has_layer):
            drafts = (self._requests, speculation.num_drafts)
            yield self._call("broadcast", "pp", 1, drafts, drafts, dtype="int64")

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
        sizes = {"pp": self.layout.pp, "ep": self.layout.ep, "dcp": self.layout.dcp}
        return Collective(
            stage=self.stage,
            phase=self.step.phase,
            op=op,
            group=group,
            group_size=sizes.get(group, self.layout.tp),
            count=calls_per_step * self.step.count,
            input_shape=input_shape,
            output_shape=output_shape,
            dtype=dtype or self.spec.dtype,
            provenance="formula",
        )
