"""Dry run: the real model code without values, peers or devices.

The decoder runs on torch's ``meta`` device with torch's ``fake`` process group, once
a pipeline stage, with one prefill and one decode step of each group of requests; what a decode step sends does
not depend on its position, so its calls are counted ``decode_tokens - 1`` times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from weft.closed_form.schedule import check_length
from weft.comm.groups import open_fake_groups
from weft.engine.block_pool import BlockPool
from weft.engine.flight import Flight, Launched
from weft.engine.request import Request, SamplingParams
from weft.engine.runner import StageRunner
from weft.engine.scheduler import Scheduler
from weft.engine.step import Step
from weft.tracing.recorded import rows_from_calls
from weft.vocabulary.conventions import Conventions, engine_named
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective, Schedule, merge_rows
from weft.vocabulary.workload import Workload

_BLOCK_SIZE = 16


def dry_run(spec: ModelSpec, layout: Layout, workload: Workload, engine: str = "weft") -> Schedule:
    """Every collective that one rank of each stage makes for ``workload``.

    Raises LayoutError or WorkloadError where the model cannot run that way.
    """
    layout.check_model(spec)
    check_length(spec, workload)
    conventions = engine_named(engine)
    rows = [
        row
        for stage in range(layout.pp)
        for row in _stage_rows(spec, layout, workload, conventions, stage)
    ]
    return Schedule(
        source="dry-run",
        engine=engine,
        model=spec,
        layout=layout,
        workload=workload,
        collectives=merge_rows(rows),
    )


def _stage_rows(
    spec: ModelSpec, layout: Layout, workload: Workload, conventions: Conventions, stage: int
) -> Iterator[Collective]:
    rank = layout.rank_of(stage=stage)
    with open_fake_groups(layout, rank=rank) as groups, groups.recording() as recorder:
        runner = StageRunner(spec, groups, conventions)
        runner.allocate(
            num_blocks=1,
            block_size=_BLOCK_SIZE,
            max_length=workload.prompt_tokens + workload.decode_tokens,
            max_rows=workload.batch,
        )
        num_groups = layout.pp if conventions.micro_batches else 1
        flight = Flight(runner, groups, attempt=lambda _, work: work())
        for step in _one_step_of_each_phase(workload, num_groups):
            for launched in (Launched(step=step), *[None] * (layout.pp - 1)):
                flight.tick(launched, recorder)
    for row in rows_from_calls(recorder.calls, stage, timed=False):
        repeats = workload.num_decode_steps if row.phase == "decode" else 1
        yield replace(row, count=row.count * repeats)


def _one_step_of_each_phase(workload: Workload, num_groups: int) -> Iterator[Step]:
    length = workload.prompt_tokens + 2
    pool = BlockPool(1 + workload.batch * -(-length // _BLOCK_SIZE), _BLOCK_SIZE)
    scheduler = Scheduler(
        pool,
        max_batch_tokens=workload.batch * workload.prompt_tokens,
        max_batch_requests=workload.batch,
        num_groups=num_groups,
    )
    sampling = SamplingParams(max_tokens=min(2, workload.decode_tokens), ignore_eos=True)
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
