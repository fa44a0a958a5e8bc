"""``weft calibrate``: measure this machine and write its fabric file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from weft.cli import calibrate_accelerator, ranks
from weft.cli.default_group import app_with_default
from weft.cli.options import Format
from weft.cli.output import OutputFormat
from weft.errors import CheckFailed, UserError
from weft.fabric.local import default_path
from weft.vocabulary.layout import Layout

NUM_RANKS = 4
LARGEST_ERROR = 0.15


def calibrate(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="The fabric's name.")] = "local",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write [~/.config/weft/fabric.json]."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure, about.")] = 25.0,
    check: Annotated[
        bool, typer.Option("--check", help="Also measure sizes in between and compare.")
    ] = False,
    timeout: ranks.Timeout = 60.0,
    output_format: Format = OutputFormat.TABLE,
) -> None:
    """Measure all-reduce by algorithm, size, type and group; fit the links; write a fabric file.

    algorithm="auto" and the predictions read the file. With --check it exits with 1 where
    the median error of sizes that are not in the file is above 15 %.

    Example: weft calibrate --check
    """
    if seconds <= 0:
        raise UserError(f"--seconds {seconds}: must be above 0")
    path = default_path() if output is None else output
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} is not there; create it")

    def work() -> None:
        from weft.bench.calibration import calibrate as measure
        from weft.cli.fabrics import print_fabric
        from weft.fabric.files import save

        start = time.monotonic()
        result = measure(name, seconds, timeout, check=check)
        if result is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        save(result.fabric, path)
        print_fabric(result.fabric, output_format)
        print(f"{path}: measured in {time.monotonic() - start:.0f} s", file=sys.stderr)
        if check:
            _report(result.median_error, len(result.errors))

    ranks.on_every_rank(context, Layout(tp=NUM_RANKS), work)


def _report(median_error: float, count: int) -> None:
    text = f"median error of {count} predictions at sizes not measured: {median_error:.1%}"
    if median_error > LARGEST_ERROR:
        raise CheckFailed(f"{text}, above {LARGEST_ERROR:.0%}; is the machine busy?")
    print(text, file=sys.stderr)


app = app_with_default(
    calibrate,
    {"accelerator": calibrate_accelerator.calibrate_accelerator},
    epilog="Also: weft calibrate accelerator.",
)
