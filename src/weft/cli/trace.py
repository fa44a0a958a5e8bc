"""``weft trace``: the schedule of a real run, or of a dry run at any scale."""

from __future__ import annotations

from typing import Annotated

import typer

from weft.cli import options, ranks
from weft.cli.output import OutputFormat
from weft.cli.schedule_output import print_schedule
from weft.closed_form.schedule import check_length
from weft.launch.environment import current_rank
from weft.vocabulary.model_source import load_spec


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
    from weft import api

    layout, load, steps = degrees.on(place.nnodes), sizes.of(workload), more.parsed()

    def work() -> None:
        found = api.trace(
            model,
            layout,
            load,
            engine=engine,
            dry_run=dry_run,
            device=place.device,
            timeout_s=place.timeout,
            **steps,
        )
        if current_rank().rank == 0:
            print_schedule(found, output_format)

    if dry_run or any(steps.values()):
        work()
        return
    spec = load_spec(model)
    layout.check_model(spec)
    check_length(spec, load)
    place.start(context, layout, work)
