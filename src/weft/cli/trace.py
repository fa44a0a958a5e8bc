"""``weft trace``: the schedule of a real run, or of a dry run at any scale."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.cli import options, ranks
from weft.cli.output import OutputFormat
from weft.cli.schedule_output import print_schedule
from weft.closed_form.schedule import check_length
from weft.errors import UserError
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload


def trace(
    *,
    context: typer.Context,
    model: options.Model = "embedded",
    degrees: options.LayoutOptions,
    workload: options.WorkloadName = "paper",
    sizes: options.SizeOptions,
    engine: options.Engine = "weft",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="No device, no peers: shapes only, any scale.")
    ] = False,
    place: ranks.RankOptions,
    more: options.ScheduleOptions,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Print the collectives of one request, recorded from a run (dummy weights if none).

    Example: weft trace llama-3.1-405b --tp 128 --prompt 128 --decode 128 --dry-run
    """
    layout = degrees.on(place.nnodes)
    load = sizes.of(workload)
    spec = load_spec(model)
    layout.check_model(spec)
    check_length(spec, load)
    if dry_run:
        from weft.tracing.dry_run import dry_run as run_dry

        print_schedule(run_dry(spec, layout, load, engine, **more.parsed()), output_format)
        return
    for name, value in (("speculate", more.speculate), ("prefill-layout", more.prefill_layout)):
        if value is not None:
            raise UserError(f"--{name} {value}: is a schedule that is not run here; add --dry-run")
    place.start(
        context,
        layout,
        lambda: _trace_run(model, layout, load, engine, place.device, place.timeout, output_format),
    )


def _trace_run(
    model: str,
    layout: Layout,
    load: Workload,
    engine: str,
    device: str,
    timeout_s: float,
    output_format: OutputFormat,
) -> None:
    from weft.engine.llm import LLM
    from weft.tracing.run import record_run

    tokens = load.batch * (load.prompt_tokens + load.decode_tokens + 16)
    with LLM(
        model,
        layout,
        device=device,
        timeout_s=timeout_s,
        conventions=engine,
        prefix_caching=False,
        cache_tokens=tokens,
        max_batch_tokens=load.batch * load.prompt_tokens,
        max_batch_requests=load.batch,
    ) as llm:
        prompts = load.made_up_prompts(0, llm.engine.spec.vocab_size)
        schedule, _ = record_run(llm, load, prompts)
        if llm.groups.rank == 0:
            print_schedule(schedule, output_format)
