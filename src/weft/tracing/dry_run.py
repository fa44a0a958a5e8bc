"""Dry run: the real model code without values, peers or devices.

The decoder runs on torch's ``meta`` device with torch's ``fake`` process group, once
a pipeline stage, with one prefill and one decode step of each group of requests; what a decode step sends does
not depend on its position, so its calls are counted as often as there are such steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from weft.closed_form.schedule import check_schedule, num_decode_steps, share_of_replica
from weft.comm.groups import ProcessGroups, open_fake_groups
from weft.comm.recorder import Recorder
from weft.engine.block_pool import BlockPool
from weft.engine.cache_transfer import CacheTransfer, MovedLayer, moved_layers
from weft.engine.flight import Flight, Launched
from weft.engine.request import Request, SamplingParams
from weft.engine.runner import StageRunner
from weft.engine.scheduler import Scheduler
from weft.engine.step import Step
from weft.layers.attention import Cache
from weft.tracing.dry_speculation import AlwaysRight, DraftPasses
from weft.tracing.recorded import rows_from_calls
from weft.vocabulary.conventions import Conventions, engine_named
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective, Phase, Schedule, merge_rows
from weft.vocabulary.speculation import Speculation
from weft.vocabulary.workload import Workload

_BLOCK_SIZE = 16


def dry_run(
    spec: ModelSpec,
    layout: Layout,
    workload: Workload,
    engine: str = "weft",
    *,
    speculation: Speculation | None = None,
    prefill_layout: Layout | None = None,
) -> Schedule:
    """Every collective that one rank of each stage makes for ``workload``.

    ``speculation``: guesses of decode steps; ``prefill_layout``: of other ranks that do the
    prompts and send their cache. Raises LayoutError or WorkloadError where the model cannot run
    that way.
    """
    check_schedule(spec, layout, workload, speculation, prefill_layout)
    run = _DryRun(
        spec=spec,
        workload=replace(workload, batch=share_of_replica(workload, layout)),
        conventions=engine_named(engine),
        speculation=speculation,
        prefill=prefill_layout,
        decode=layout,
    )
    ends: tuple[tuple[Layout, Phase | None], ...] = ((layout, None),)
    if prefill_layout is not None:
        ends = (prefill_layout, "prefill"), (layout, "decode")
    return Schedule(
        source="dry-run",
        engine=engine,
        model=spec,
        layout=layout,
        workload=workload,
        collectives=merge_rows(
            row
            for where, phase in ends
            for stage in range(where.pp)
            for row in run.rows(where, stage, phase)
        ),
        speculation=speculation,
        prefill_layout=prefill_layout,
    )


@dataclass(frozen=True, kw_only=True)
class _DryRun:
    """What is run; on other ranks for the prompts where ``prefill`` is a layout."""

    spec: ModelSpec
    workload: Workload
    conventions: Conventions
    speculation: Speculation | None
    prefill: Layout | None
    decode: Layout

    def rows(self, layout: Layout, stage: int, phase: Phase | None) -> Iterator[Collective]:
        """The rows of one stage: of every step, or of the ``phase`` that these ranks have."""
        rank = layout.rank_of(stage=stage)
        before = self.prefill.world_size if self.prefill and phase == "decode" else 0
        after = self.decode.world_size if phase == "prefill" else 0
        with (
            open_fake_groups(layout, rank=rank, before=before, after=after) as groups,
            groups.recording() as recorder,
        ):
            self._steps(groups, recorder, phase)
        for row in rows_from_calls(recorder.calls, stage, timed=False):
            repeats = self.workload.batch if row.group == "kv" else 1
            if row.phase == "decode" and row.group != "kv":
                repeats = num_decode_steps(self.workload, self.speculation)
            yield replace(row, count=row.count * repeats)

    def _steps(self, groups: ProcessGroups, recorder: Recorder, phase: Phase | None) -> None:
        """One step of each phase, and the cache of one prompt on its way."""
        spec, workload, layout = self.spec, self.workload, groups.layout
        runner = StageRunner(spec, groups, self.conventions, self.speculation)
        runner.allocate(
            num_blocks=1,
            block_size=_BLOCK_SIZE,
            max_length=workload.prompt_tokens + workload.decode_tokens,
            max_rows=workload.batch,
        )
        drafts = None
        if self.speculation is not None and self.speculation.has_layer and runner.stage.is_last:
            drafts = DraftPasses(self.speculation, spec, runner, groups, self.conventions)
        flight = Flight(runner, groups, attempt=lambda _, work: work())
        num_groups = layout.pp if self.conventions.micro_batches else 1
        for step in _one_step_of_each_phase(workload, num_groups, self.speculation):
            if phase in (None, step.phase):
                for launched in (Launched(step=step), *[None] * (layout.pp - 1)):
                    flight.tick(launched, recorder)
                if drafts is not None:
                    drafts.after(step, recorder)
        if phase is not None:
            with recorder.step(phase, workload.prompt_tokens):
                self._transfer(groups, runner.caches, drafts, phase)

    def _transfer(
        self, groups: ProcessGroups, caches: list[Cache], drafts: DraftPasses | None, phase: Phase
    ) -> None:
        """One prompt's cache leaves the prefill ranks, or comes to the decode ranks."""
        assert groups.kv is not None
        assert self.prefill is not None
        every = moved_layers(self.spec, self.prefill, self.decode)
        mine = groups.layout.layers_of_stages(self.spec.num_layers)[groups.stage]
        layers = every[mine.start : mine.stop]
        if drafts is not None:
            last = self.prefill.pp - 1, self.decode.pp - 1
            layers.append(MovedLayer(kind=drafts.kind, prefill_stage=last[0], decode_stage=last[1]))
            caches = [*caches, drafts.cache]
        transfer = CacheTransfer(self.prefill, self.decode, groups.kv)
        slots = torch.empty(self.workload.prompt_tokens, dtype=torch.int64, device="meta")
        move = transfer.send if phase == "prefill" else transfer.receive
        move(layers, caches, slots, 0)


def _one_step_of_each_phase(
    workload: Workload, num_groups: int, speculation: Speculation | None
) -> Iterator[Step]:
    num_drafts = 0 if speculation is None else speculation.num_drafts
    length = workload.prompt_tokens + 2 + num_drafts
    pool = BlockPool(1 + workload.batch * -(-length // _BLOCK_SIZE), _BLOCK_SIZE)
    scheduler = Scheduler(
        pool,
        max_batch_tokens=workload.batch * max(workload.prompt_tokens, num_drafts),
        max_batch_requests=workload.batch,
        num_groups=num_groups,
        proposer=AlwaysRight(num_drafts) if num_drafts else None,
    )
    max_tokens = 1 if workload.decode_tokens == 1 else 2 + num_drafts
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    prompt = [0] * workload.prompt_tokens
    for number in range(workload.batch):
        scheduler.add(
            Request(number=number, prompt=prompt, sampling=sampling, stop_ids=frozenset())
        )
    group = 0
    while scheduler.has_work:
        chunks = scheduler.schedule(group % num_groups)
        group += 1
        if chunks:
            yield Step.of(chunks)
            scheduler.finish(chunks, [0] * len(chunks))
