"""StageRunner: one rank's part of the model and what a step does with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from weft.comm.groups import ProcessGroups
from weft.engine.batch import BatchBuilder, PlainBatches, RequestTables, to_device
from weft.engine.draw import Draws
from weft.engine.graph_inputs import DecodeInputs, ReceivedRows, RowInputs
from weft.engine.graphs import Replay, StepGraphs
from weft.engine.logprobs import LogprobReader
from weft.engine.pipeline import StageLink
from weft.engine.sampling import Sampler
from weft.engine.stage_output import StageOutput
from weft.engine.step import Step
from weft.engine.streams import open_streams
from weft.layers import fused
from weft.layers.linear import Placement
from weft.layers.rope import RotaryTable, RotaryTables
from weft.layers.shared_positions import SharedPositions
from weft.models.decoder import Batch, Boundary, DecoderStage
from weft.models.weights import fill_dummy, load_weights
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.speculation import Speculation

if TYPE_CHECKING:
    from weft.engine.fused_batch import FusedBatches


_PAGED_WORK: Final = 1 << 22
"""Rows times positions up to which a step with prompts takes the kernel that graphs need;
beyond, torch's kernels are ahead and launching them hides behind them."""


class StageRunner:
    """Holds the stage's weights, caches and tables.

    On the ``meta`` device the same code runs without values (dry run).
    """

    def __init__(
        self,
        spec: ModelSpec,
        groups: ProcessGroups,
        conventions: Conventions,
        speculation: Speculation | None = None,
    ) -> None:
        self.device, self.dtype = groups.device, getattr(torch, spec.dtype)
        self._speculation = speculation
        self.where = where = Placement(
            tp_rank=groups.tp.rank,
            tp_size=groups.tp.size,
            dtype=self.dtype,
            device=self.device,
            vocab_multiple=conventions.vocab_multiple,
        )
        streams = open_streams(spec, groups, conventions)
        layers = groups.layout.layers_of_stages(spec.num_layers)[groups.stage]
        self._layers, self._tp = layers, groups.tp.size
        self._replicates_rows = groups.layout.sp == 1
        self.spec, self._stream, self._num_stages = spec, streams.residual, groups.layout.pp
        self._like = torch.empty(0, dtype=self.dtype, device=self.device)
        self.stage = DecoderStage(spec, layers, streams, where).eval()
        self._num_kv_heads = max(1, spec.num_kv_heads // groups.tp.size)
        self._num_heads = spec.num_heads // groups.tp.size
        self._link = StageLink(groups, conventions, spec.hidden_size)
        self._conventions = conventions
        self._logprobs = LogprobReader(groups, conventions, spec.vocab_size)
        self._num_received = 0 if self.stage.is_first else conventions.boundary_tensors
        self._groups = groups
        self._fused: FusedBatches | None = None
        self._decodes: StepGraphs[StageOutput] | None = None
        self._mixed: StepGraphs[Boundary | torch.Tensor] | None = None

    def load(self, directory: Path | None, seed: int, *, rounds: bool = False) -> None:
        """Fill the weights from a checkpoint, or with dummy values where there is none.

        rounds: the checkpoint's matrices may be stored in more bits than they are held in.
        """
        if directory is None:
            fill_dummy(self.stage, seed)
        else:
            load_weights(self.stage, directory, rounds=rounds)

    @property
    def _has_kernels(self) -> bool:
        """Whether weft's own kernels compute the attention: its type, device and kind."""
        return fused.takes(self._like) and self.spec.attention_has_kernels

    @property
    def preferred_block_size(self) -> int:
        """Positions in a block of the cache that suit the attention."""
        return 64 if self._has_kernels else 16

    @property
    def cache_bytes_per_position(self) -> int:
        """Bytes of key-value cache that one position takes on this rank."""
        return self.spec.cache_elements(self._layers, self._tp) * self._like.element_size()

    @property
    def state_bytes_per_request(self) -> int:
        """Bytes that a running request takes on this rank whatever its length."""
        return self.spec.state_bytes(self._layers, self._tp)

    def allocate(self, *, num_blocks: int, block_size: int, max_length: int, max_rows: int) -> None:
        """Make the caches, the rotary table and the tables of ``max_rows`` running requests."""
        num_slots, self._block_size = num_blocks * block_size, block_size
        self.caches = self.stage.make_caches(num_slots, max_rows + 1, self._like)
        ropes = RotaryTables(map(self.spec.attention, self._layers), max_length, self.device)
        last_ids = torch.zeros(max_rows + 1, dtype=torch.int64, device=self.device)
        self.tables = RequestTables(last_ids=last_ids)
        self.sampler = Sampler(
            self._groups,
            self._conventions,
            self.spec.vocab_size,
            len(last_ids),
            self._speculation,
            holders=self._groups.tp if self.stage.streams.joined is None else self._groups.ep,
        )
        self._builder: BatchBuilder = PlainBatches(
            ropes,
            block_size=block_size,
            dtype=self.dtype,
            device=self.device,
            shared=SharedPositions(self._groups.dcp) if self._groups.dcp.size > 1 else None,
        )
        if self._has_kernels:
            self._allocate_fused(ropes.only, block_size, -(-max_length // block_size) + 1, max_rows)

    def _allocate_fused(
        self, rope: RotaryTable, block_size: int, max_blocks: int, max_rows: int
    ) -> None:
        from weft.engine.fused_batch import FusedBatches
        from weft.layers.fused.decode_attention import DecodeWorkspace

        shape = (max_rows + 1, max_blocks)
        self.tables.blocks = torch.zeros(shape, dtype=torch.int32, device=self.device)
        workspace = DecodeWorkspace(
            max_rows, self._num_heads, self._num_kv_heads, self.spec.head_dim, self._like
        )
        self._fused = self._builder = FusedBatches(rope, workspace, block_size=block_size)

    @property
    def can_capture(self) -> bool:
        """Whether steps can run as graphs: fused kernels, whole rows."""
        return self._fused is not None and self._replicates_rows

    @torch.inference_mode()
    def capture(self, batches: Sequence[int], rows: Sequence[int]) -> None:
        """Capture steps of so many decodes, and steps with prompts of so many rows."""
        from weft.layers.fused.paged_attention import rows_of_a_piece

        received = ReceivedRows(
            max(*batches, *rows), self.spec.hidden_size, self._num_received, self._like
        )
        spare = self.tables.spare_row
        self._decode_inputs = DecodeInputs(max(batches), received, spare_row=spare)
        self._row_inputs = RowInputs(
            max(rows),
            received,
            most_requests=spare,
            piece_rows=rows_of_a_piece(self._num_heads, self._num_kv_heads),
            block_size=self._block_size,
        )
        self._mixed = StepGraphs(self._mix, rows, self._groups)
        self._decodes = StepGraphs(self._decode, batches, self._groups)

    def make_plans(self, most: int) -> None:
        """Prepare the attention of prompts of up to ``most`` rows."""
        if self._fused is not None:
            from weft.layers.long_prompts import make_plans

            make_plans(self._num_heads, self._num_kv_heads, self.spec.head_dim, most, self._like)

    def close(self) -> None:
        """Give back the memory of graphs, caches and weights; nothing runs afterwards."""
        self._decodes = self._mixed = None
        self.caches.clear()
        self.stage.to_empty(device="meta")

    def _mix(self, size: int) -> Boundary | torch.Tensor:
        """The rows of a step with prompts, before its logits."""
        assert self._fused is not None
        inputs = self._row_inputs
        batch = self._fused.of_rows(inputs.tensors(size), self.tables)
        return self.stage.rows(batch, self.caches, inputs.received.first(size))

    def _decode(self, size: int) -> StageOutput:
        assert self._fused is not None
        rows, lengths = self._decode_inputs.rows_and_lengths(size)
        token_ids = self.tables.last_ids[rows.long()]
        batch = self._fused.of_decodes(token_ids, rows, lengths, self.tables)
        received = self._decode_inputs.received.first(size)
        output = self._output(self.stage(batch, self.caches, received))
        if output.logits is None or not self.sampler.picks_alone:
            return output
        draws = Draws(rows=rows, lengths=lengths, table=self.sampler.table)
        ids = self.sampler.pick(output.logits, draws)
        if self._num_stages > 1:
            return replace(output, ids=ids)
        self.tables.last_ids.index_copy_(0, rows.long(), ids.clamp(min=0))
        return replace(output, ids=ids, is_booked=True)

    @staticmethod
    def _output(output: Boundary | torch.Tensor) -> StageOutput:
        if isinstance(output, Boundary):
            return StageOutput(boundary=output)
        return StageOutput(logits=output)

    def receive(self, step: Step) -> Boundary | None:
        """What the previous stage sends; None on the first stage."""
        if self.stage.is_first:
            return None
        return self._link.receive(self._stream.num_rows(step.num_tokens), self._like)

    @torch.inference_mode()
    def forward(self, step: Step, received: Boundary | None, *, eager: bool = False) -> StageOutput:
        """This stage's part of a step, as a graph where there is one for it."""
        self.tables.update(step)
        if self.stage.is_last:
            self.sampler.table.enter(step.entering)
        replayed = self._replayed(step, received, eager=eager)
        if replayed is not None:
            return replayed
        return self._output(self.stage(self.batch(step), self.caches, received))

    def batch(self, step: Step) -> Batch:
        """The step's tensors."""
        batch = self._builder.build(step, self.tables)
        return replace(
            batch, num_everywhere=step.num_everywhere, has_prompts=step.phase != "decode"
        )

    def replay_of(self, step: Step, *, eager: bool) -> Replay:
        """The graphs that hold a step of this rank alone."""
        if eager or self._decodes is None:
            return Replay.NONE
        if step.num_decodes == step.num_tokens:
            return Replay.DECODES
        recorded = self._groups.recorder is not None  # with the rows that were asked for
        is_long = step.num_tokens * step.context_lengths.max() > _PAGED_WORK
        return Replay.NONE if recorded or is_long else Replay.ROWS

    def _replayed(
        self, step: Step, received: Boundary | None, *, eager: bool
    ) -> StageOutput | None:
        """The step by the graph that holds it; None where there is none."""
        replay = self.replay_of(step, eager=eager) if step.replay is None else step.replay
        if replay is Replay.NONE or self._decodes is None or self._mixed is None:
            return None
        count = step.num_tokens
        graphs = self._decodes if replay is Replay.DECODES else self._mixed
        size = graphs.size_for(max(count, step.num_everywhere))
        if size is None:
            return None
        if replay is Replay.DECODES:
            self._decode_inputs.fill(step, size, received)
            return self._decodes.replay(size).first(count)
        self._row_inputs.fill(step, size, received)
        rows = self._mixed.replay(size)
        if isinstance(rows, Boundary):
            return self._output(rows).first(count)
        (wanted,) = to_device(self.device, step.logit_rows)
        return StageOutput(logits=self.stage.logits(rows, wanted))

    def no_numbers(self, step: Step) -> StageOutput:
        """What a step that failed leaves: the shapes of its output, filled with NaN."""
        if self.stage.head is not None:
            shape = len(step.logit_rows), len(self.stage.head.weight)
            return StageOutput(logits=self._like.new_full(shape, math.nan))
        rows = self._stream.num_rows(step.num_tokens)
        hidden = self._like.new_full((rows, self.spec.hidden_size), math.nan)
        return StageOutput(boundary=Boundary(hidden=hidden, residual=hidden))

    def send(self, boundary: Boundary) -> None:
        """To the next stage."""
        self._link.send(boundary)

    @torch.inference_mode()
    def choose(self, output: StageOutput, step: Step) -> torch.Tensor | None:
        """Ids [N] of the step's sampled sequences; None where another rank chooses."""
        if output.logits is None or not step.sampling:
            return None
        if output.ids is not None and step.is_plain:
            return output.ids
        rows = len(step.sampling) * self.sampler.num_joined
        return self.sampler.choose(output.logits[:rows], step)

    @torch.inference_mode()
    def share(self, ids: torch.Tensor | None, step: Step) -> torch.Tensor:
        """The chosen ids [N] on every rank."""
        if not step.sampling:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        return self.sampler.share(ids, step)

    @torch.inference_mode()
    def book(self, ids: torch.Tensor, step: Step) -> None:
        """Put the ids [N] where the next step finds them."""
        if not step.sampling:
            return
        (rows,) = to_device(self.device, step.sampled[0])
        self.tables.last_ids.index_copy_(0, rows, ids.clamp(min=0))
        if self.stage.is_last:
            self.sampler.note(step, ids)

    @torch.inference_mode()
    def logprobs(
        self, logits: torch.Tensor | None, ids: torch.Tensor, step: Step
    ) -> torch.Tensor | None:
        """What ``LogprobReader.read`` says of ``ids`` on the last stage; None where nobody asks."""
        if logits is None:
            return None
        return self._logprobs.read(logits, ids, step.sampling, step.prompt_rows)

    def share_logprobs(self, found: torch.Tensor | None, step: Step) -> torch.Tensor | None:
        """The same on every rank."""
        return self._logprobs.share(found, step.sampling, step.prompt_rows)
