"""``weft bench decode``: time to first token and per token, beside the memory roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.bench.decode_bench import DecodeBench
from weft.cli import options, ranks
from weft.cli.output import OutputFormat, check_file, print_rows
from weft.launch.environment import current_rank
from weft.vocabulary.files import write_file


def bench_decode(
    *,
    context: typer.Context,
    model: options.Model = "llama-3.1-8b",
    bench: DecodeBench,
    degrees: options.LayoutOptions,
    place: ranks.RankOptions,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the JSON result here.", callback=check_file),
    ] = None,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Time the engine: TTFT is the time of one token, TPOT that of the others.

    Example: weft bench decode llama-3.1-8b --tp 4 --case 1x128 --case 32x1024
    """
    layout = degrees.on(place.nnodes)
    bench.check(model, layout)

    def work() -> None:
        result = bench.run(model, layout, device=place.device, timeout_s=place.timeout)
        if current_rank().rank == 0:
            if output is not None:
                write_file(output, result.to_dict())
            _print(result.to_dict(), output_format)

    place.start(context, layout, work)


def _print(result: dict[str, Any], output_format: OutputFormat) -> None:
    print_rows(result["rows"], output_format, document=result)
    if output_format is OutputFormat.TABLE:
        for name, rows in result.get("profiles", {}).items():
            print_rows(rows[:20], output_format, title=f"one step of {name}")
