"""The schedule of a request in closed form, for any model, layout and engine.

Source: Xu et al., "Characterizing Communication Patterns in Distributed Large
Language Model Inference" (their tables are engine ``vllm-v0``). Symbols: L layers
of the stage, T token rows of the step, h hidden size, v vocabulary, t = tp, B batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weft.closed_form.cache_transfer import transfer_rows
from weft.closed_form.stage_step import StageStep, StepRows
from weft.errors import LayoutError, WorkloadError
from weft.vocabulary.cache_transfer import check_prefill
from weft.vocabulary.conventions import Conventions, engine_named
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.schedule import Collective, Schedule, merge_rows
from weft.vocabulary.speculation import Speculation, check_speculation
from weft.vocabulary.workload import Workload


def closed_form(
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
    conventions = engine_named(engine)

    def rows_on(where: Layout, phases: tuple[str, ...]) -> tuple[Collective, ...]:
        steps = _steps(workload, where, conventions, speculation)
        chosen = [step for step in steps if step.phase in phases]
        return rows_of_steps(spec, where, chosen, conventions, speculation=speculation)

    if prefill_layout is None:
        rows = rows_on(layout, ("prefill", "decode"))
    else:
        transfers = transfer_rows(spec, prefill_layout, layout, workload, speculation)
        prompts = rows_on(prefill_layout, ("prefill",))
        rows = (*prompts, *transfers, *rows_on(layout, ("decode",)))
    return Schedule(
        source="closed-form",
        engine=engine,
        model=spec,
        layout=layout,
        workload=workload,
        collectives=merge_rows(rows),
        speculation=speculation,
        prefill_layout=prefill_layout,
    )


def rows_of_steps(
    spec: ModelSpec,
    layout: Layout,
    steps: Iterable[StepRows],
    conventions: Conventions,
    stages: Iterable[int] | None = None,
    speculation: Speculation | None = None,
) -> tuple[Collective, ...]:
    """The rows of any series of engine steps, on all stages or on the given ones."""
    chosen = range(layout.pp) if stages is None else stages
    all_steps = tuple(steps)
    return merge_rows(
        row
        for stage in chosen
        for step in all_steps
        for row in StageStep(spec, layout, conventions, stage, step, speculation).rows()
    )


def check_schedule(
    spec: ModelSpec,
    layout: Layout,
    workload: Workload,
    speculation: Speculation | None = None,
    prefill_layout: Layout | None = None,
) -> None:
    """Raise LayoutError or WorkloadError where the model cannot run that way."""
    layout.check_model(spec)
    check_length(spec, workload)
    if speculation is not None:
        check_speculation(spec, speculation)
        if speculation.has_layer and layout.sp > 1:
            raise LayoutError(
                f"`sp` {layout.sp}: no engine has a draft layer beside sequence parallelism; "
                "set `sp` 1 or `speculate` ngram"
            )
    if prefill_layout is not None:
        prefill_layout.check_model(spec)
        check_prefill(spec, layout, prefill_layout)


def check_length(spec: ModelSpec, workload: Workload) -> None:
    """Raise WorkloadError where prompt and decode exceed the model's positions."""
    length = workload.prompt_tokens + workload.decode_tokens
    if length > spec.max_position:
        raise WorkloadError(
            f"`prompt_tokens` {workload.prompt_tokens} `decode_tokens` {workload.decode_tokens}: {length} tokens "
            f"exceed the {spec.max_position} positions of {spec.name}"
        )


def _steps(
    workload: Workload, layout: Layout, conventions: Conventions, speculation: Speculation | None
) -> Iterator[StepRows]:
    each = 1 if speculation is None else speculation.rows
    for batch in micro_batches(share_of_replica(workload, layout), layout, conventions):
        prompt_rows = batch * workload.prompt_tokens
        yield StepRows(phase="prefill", rows=prompt_rows, sequences=batch, count=1, requests=batch)
        yield StepRows(
            phase="decode",
            rows=batch * each,
            sequences=batch * each,
            count=num_decode_steps(workload, speculation),
            requests=batch,
        )


def num_decode_steps(workload: Workload, speculation: Speculation | None) -> int:
    """Steps after the prefill, which gives the first token."""
    steps = workload.num_decode_steps
    return steps if speculation is None else speculation.num_steps(steps)


def share_of_replica(workload: Workload, layout: Layout) -> int:
    """Sequences of the first replica, which has most where they do not divide evenly."""
    return -(-workload.batch // layout.dp)


def micro_batches(batch: int, layout: Layout, conventions: Conventions) -> list[int]:
    """Sequences of each group of requests that goes through the pipeline by itself."""
    groups = layout.pp if conventions.micro_batches else 1
    sizes = [batch // groups + (index < batch % groups) for index in range(groups)]
    return [size for size in sizes if size]
