"""The guesses of a dry run: drafts that are always right, and the passes of a draft layer."""

from __future__ import annotations

from dataclasses import replace

import torch

from weft.comm.groups import ProcessGroups
from weft.comm.recorder import Recorder
from weft.engine.request import Request
from weft.engine.runner import StageRunner
from weft.engine.step import Step
from weft.engine.streams import open_streams
from weft.models.draft import DraftLayer
from weft.vocabulary.conventions import Conventions
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.speculation import Speculation


class AlwaysRight:
    """As many drafts as may be, of the token that a dry run says."""

    def __init__(self, num_drafts: int) -> None:
        self._num_drafts = num_drafts

    def propose(self, request: Request, most: int) -> list[int]:  # noqa: ARG002
        return [0] * min(most, self._num_drafts)


class DraftPasses:
    """What a draft layer does after each step of the last stage."""

    def __init__(
        self,
        speculation: Speculation,
        spec: ModelSpec,
        runner: StageRunner,
        groups: ProcessGroups,
        conventions: Conventions,
    ) -> None:
        self._num_passes, self._runner = speculation.num_drafts, runner
        layer_spec = speculation.layer_of(spec)
        streams = open_streams(layer_spec, groups, conventions)
        self._layer = DraftLayer(layer_spec, streams, runner.where)
        self._like = torch.empty(0, dtype=runner.dtype, device="meta")
        self._hidden_size = spec.hidden_size
        self.kind = layer_spec.attention(0)
        self.cache = self._layer.layer.attention.make_cache(1, 1, self._like)

    def after(self, step: Step, recorder: Recorder) -> None:
        """One pass over the step's rows, and one over its requests for each further draft."""
        last = {chunk.request: chunk for chunk in step.sampling}
        single = [
            replace(chunk, start=chunk.start + chunk.count - 1, count=1, is_decode=True)
            for chunk in last.values()
        ]
        later = Step.of(single) if single else step
        with recorder.step(step.phase, step.num_tokens):
            for one in (step, *[later] * (self._num_passes - 1)):
                self._pass(one, len(single))

    def _pass(self, step: Step, num_wanted: int) -> None:
        wanted = torch.empty(num_wanted, dtype=torch.int64, device="meta")
        batch = replace(self._runner.batch(step), logit_rows=wanted)
        hidden = self._like.new_empty((step.num_tokens, self._hidden_size))
        self._runner.sampler.greedy(self._layer(batch, hidden, self.cache))
