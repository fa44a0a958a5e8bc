"""StageRunner: one rank's part of the model and what a step does with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from weft.comm.groups import ProcessGroups
from weft.engine.batch import BatchBuilder, PlainBatches, RequestTables, to_device
from weft.engine.graphs import DecodeBuffers, DecodeGraphs, Outputs
from weft.engine.logprobs import LogprobReader
from weft.engine.pipeline import StageLink
from weft.engine.sampling import Sampler
from weft.engine.step_inputs import StepInputs
from weft.engine.streams import open_streams
from weft.layers import fused
from weft.layers.linear import Placement
from weft.layers.rope import RotaryTable, RotaryTables
from weft.models.decoder import Boundary, DecoderStage
from weft.models.weights import fill_dummy, load_weights
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.model_spec import ModelSpec

if TYPE_CHECKING:
    from weft.engine.fused_batch import FusedBatches


class StageRunner:
    """Holds the stage's weights, caches and tables.

    On the ``meta`` device the same code runs without values (dry run).
    """

    def __init__(self, spec: ModelSpec, groups: ProcessGroups, conventions: Conventions) -> None:
        self.device, self.dtype = groups.device, getattr(torch, spec.dtype)
        where = Placement(
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
        self._sampler = Sampler(groups, conventions, spec.vocab_size)
        self._logprobs = LogprobReader(groups, conventions, spec.vocab_size)
        self._num_received = 0 if self.stage.is_first else conventions.boundary_tensors
        self._groups = groups
        self._fused: FusedBatches | None = None
        self._graphs: DecodeGraphs | None = None
        self._graph_ids: torch.Tensor | None = None

    def load(self, directory: Path | None, seed: int) -> None:
        """Fill the weights from a checkpoint, or with dummy values where there is none."""
        if directory is None:
            fill_dummy(self.stage, seed)
        else:
            load_weights(self.stage, directory)

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

    def allocate(self, *, num_blocks: int, block_size: int, max_length: int, max_rows: int) -> None:
        """Make the caches, the rotary table and the tables of ``max_rows`` running requests."""
        num_slots = num_blocks * block_size
        self.caches = self.stage.make_caches(num_slots, self._like)
        ropes = RotaryTables(map(self.spec.attention, self._layers), max_length, self.device)
        last_ids = torch.zeros(max_rows + 1, dtype=torch.int64, device=self.device)
        self.tables = RequestTables(last_ids=last_ids)
        self._builder: BatchBuilder = PlainBatches(
            ropes, block_size=block_size, dtype=self.dtype, device=self.device
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
        """Whether decode steps can run as graphs: fused kernels, whole rows on every rank."""
        return self._fused is not None and self._replicates_rows

    @torch.inference_mode()
    def capture(self, buckets: Sequence[int]) -> None:
        """Capture the decode step for each batch size of ``buckets``."""
        self._buffers = DecodeBuffers(
            max(buckets),
            self.spec.hidden_size,
            num_received=self._num_received,
            spare_row=self.tables.spare_row,
            like=self._like,
        )
        self._graphs = DecodeGraphs(self._decode, buckets, self._groups)

    def drop_graphs(self) -> None:
        """Forget the captured graphs; steps run eagerly from then on."""
        self._graphs = self._graph_ids = None

    def _decode(self, bucket: int) -> Outputs:
        assert self._fused is not None
        rows, lengths = self._buffers.rows_and_lengths(bucket)
        token_ids = self.tables.last_ids[rows.long()]
        batch = self._fused.of_buffers(token_ids, rows, lengths, self.tables)
        output = self.stage(batch, self.caches, self._buffers.received(bucket))
        if isinstance(output, Boundary) or not self._sampler.greedy_stays_on_device:
            return output, None
        ids = self._sampler.best(output)
        if self._num_stages == 1:
            self.tables.last_ids.index_copy_(0, rows.long(), ids.clamp(min=0))
        return output, ids

    def receive(self, inputs: StepInputs) -> Boundary | None:
        """What the previous stage sends; None on the first stage."""
        if self.stage.is_first:
            return None
        return self._link.receive(self._stream.num_rows(inputs.num_tokens), self._like)

    @torch.inference_mode()
    def forward(
        self, inputs: StepInputs, received: Boundary | None, *, eager: bool = False
    ) -> Boundary | torch.Tensor:
        """What the next stage needs, or this rank's logits [N, ceil(v/t)]."""
        self._graph_ids = None
        self.tables.update(inputs)
        bucket = None
        if self._graphs is not None and not eager and inputs.num_decodes == inputs.num_tokens:
            bucket = self._graphs.bucket_for(inputs.num_tokens)
        if bucket is None:
            batch = self._builder.build(inputs, self.tables)
            output: Boundary | torch.Tensor = self.stage(batch, self.caches, received)
            return output
        return self._replay(inputs, bucket, received)

    def no_numbers(self, inputs: StepInputs) -> Boundary | torch.Tensor:
        """What a step that failed leaves: the shapes of its output, filled with NaN."""
        self._graph_ids = None
        if self.stage.head is not None:
            return self._like.new_full(
                (len(inputs.logit_rows), len(self.stage.head.weight)), math.nan
            )
        rows = self._stream.num_rows(inputs.num_tokens)
        hidden = self._like.new_full((rows, self.spec.hidden_size), math.nan)
        return Boundary(hidden=hidden, residual=hidden)

    def _replay(
        self, inputs: StepInputs, bucket: int, received: Boundary | None
    ) -> Boundary | torch.Tensor:
        assert self._graphs is not None
        self._buffers.fill(inputs, bucket, received)
        output, ids = self._graphs.replay(bucket)
        count = inputs.num_tokens
        self._graph_ids = None if ids is None else ids[:count]
        if isinstance(output, torch.Tensor):
            return output[:count]
        assert output.residual is not None
        return Boundary(hidden=output.hidden[:count], residual=output.residual[:count])

    def send(self, boundary: Boundary) -> None:
        """To the next stage."""
        self._link.send(boundary)

    @torch.inference_mode()
    def choose(self, logits: torch.Tensor | None, inputs: StepInputs) -> torch.Tensor | None:
        """Ids [N] of the step's sampled sequences; None where another rank chooses."""
        chunks = inputs.sampling
        if logits is None or not chunks:
            return None
        if self._graph_ids is not None and all(c.request.sampling.is_greedy for c in chunks):
            return self._graph_ids
        return self._sampler.choose(logits[: len(chunks)], chunks)

    @torch.inference_mode()
    def share(self, ids: torch.Tensor | None, inputs: StepInputs) -> torch.Tensor:
        """The chosen ids [N] on every rank, where the next step finds them."""
        count = len(inputs.sampling)
        if not count:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        in_graph = ids is not None and ids is self._graph_ids
        ids = self._sampler.share(ids, count)
        if not in_graph or self._num_stages > 1:
            (rows,) = to_device(self.device, inputs.sampling_rows)
            self.tables.last_ids.index_copy_(0, rows, ids.clamp(min=0))
        return ids

    @torch.inference_mode()
    def logprobs(
        self, logits: torch.Tensor | None, ids: torch.Tensor, inputs: StepInputs
    ) -> torch.Tensor | None:
        """What ``LogprobReader.read`` says of ``ids`` on the last stage; None where nobody asks."""
        if logits is None:
            return None
        return self._logprobs.read(logits, ids, inputs.sampling, inputs.prompt_rows)

    def share_logprobs(self, found: torch.Tensor | None, inputs: StepInputs) -> torch.Tensor | None:
        """The same on every rank."""
        return self._logprobs.share(found, inputs.sampling, inputs.prompt_rows)

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """A whole step with nothing else under way: the ids [N]."""
        return self.share(self.choose(self.logits(inputs), inputs), inputs)

    def logits(self, inputs: StepInputs) -> torch.Tensor | None:
        """This rank's logits [N, ceil(v/t)] on the last stage, None on others; nothing sampled."""
        output = self.forward(inputs, self.receive(inputs), eager=True)
        if isinstance(output, torch.Tensor):
            return output
        self.send(output)
        return None
