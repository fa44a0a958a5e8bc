"""StageRunner: one rank's part of the model and the step that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from weft.comm.groups import ProcessGroups
from weft.engine.pipeline import StageLink
from weft.engine.request import Request
from weft.engine.sampling import Sampler
from weft.engine.streams import open_streams
from weft.layers.attention import LayerCache
from weft.layers.linear import Placement
from weft.layers.rope import RotaryTable
from weft.models.decoder import Boundary, DecoderStage, StepBatch
from weft.models.weights import fill_dummy, load_weights
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.model_spec import ModelSpec


class StageRunner:
    """Holds the stage's weights and caches; :meth:`run` takes a batch through it.

    On the ``meta`` device the same code runs without values (dry run).
    """

    def __init__(
        self,
        spec: ModelSpec,
        groups: ProcessGroups,
        conventions: Conventions,
        *,
        max_length: int,
        num_slots: int,
    ) -> None:
        layout, self.device = groups.layout, groups.device
        self.dtype = getattr(torch, spec.dtype)
        where = Placement(
            tp_rank=groups.tp.rank,
            tp_size=groups.tp.size,
            dtype=self.dtype,
            device=self.device,
            vocab_multiple=conventions.vocab_multiple,
        )
        streams = open_streams(spec, groups, conventions)
        layers = layout.layers_of_stages(spec.num_layers)[groups.stage]
        self._stream, self._rows_like = streams.residual, torch.empty(0, dtype=self.dtype, device=self.device)
        self.stage = DecoderStage(spec, layers, streams, where).eval()
        num_kv_heads = max(1, spec.num_kv_heads // layout.tp)
        self.caches = [
            LayerCache(num_slots, num_kv_heads, spec.head_dim, self._rows_like) for _ in layers
        ]
        self.rope = RotaryTable(spec, max_length, self.device)
        self._link = StageLink(groups, conventions, spec.hidden_size)
        self._sampler = Sampler(groups, conventions, spec.vocab_size)

    def load(self, directory: Path | None, seed: int) -> None:
        """Fill the weights from a checkpoint, or with dummy values where there is none."""
        if directory is None:
            fill_dummy(self.stage, seed)
        else:
            load_weights(self.stage, directory)

    @torch.inference_mode()
    def run(self, batch: StepBatch, requests: Sequence[Request]) -> torch.Tensor:
        """One step: ids [N] of the sequences whose last row is in the batch, on every rank.

        ``requests`` are those N sequences.
        """
        output = self._forward(batch)
        ids = None
        if not isinstance(output, torch.Tensor):
            self._link.send(output)
        elif requests:
            ids = self._sampler.choose(output, requests)
        return self._sampler.share(ids, batch.logit_rows) if requests else batch.logit_rows

    @torch.inference_mode()
    def logits(self, batch: StepBatch) -> torch.Tensor | None:
        """This rank's logits [N, ceil(v/t)] on the last stage, None on others; nothing sampled."""
        output = self._forward(batch)
        if isinstance(output, torch.Tensor):
            return output
        self._link.send(output)
        return None

    def _forward(self, batch: StepBatch) -> Boundary | torch.Tensor:
        received = None
        if not self.stage.is_first:
            num_rows = self._stream.num_rows(batch.num_tokens)
            received = self._link.receive(num_rows, self._rows_like)
        output: Boundary | torch.Tensor = self.stage(batch, self.caches, received)
        return output
