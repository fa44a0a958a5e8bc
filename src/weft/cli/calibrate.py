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
from weft.cli.output import OutputFormat, check_file
from weft.errors import CheckFailed, EnvironmentUnavailable, UserError
from weft.fabric.local import default_path
from weft.kernels.selection import MAX_RANKS
from weft.launch.environment import device_type
from weft.vocabulary.layout import Layout

NUM_RANKS = 4
LARGEST_ERROR = 0.15
MOST_SECONDS = 3600


def calibrate(
    context: typer.Context,
    name: Annotated[str, "The fabric's name."] = "local",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write [~/.config/weft/fabric.json, fabric-cuda.json].",
            callback=check_file,
        ),
    ] = None,
    device: Annotated[str, "cpu, or cuda: the GPUs of this machine."] = "cpu",
    seconds: Annotated[float, "How long to measure, about."] = 25.0,
    check: Annotated[
        bool, typer.Option("--check", help="Also measure sizes in between and compare.")
    ] = False,
    timeout: ranks.Timeout = 60.0,
    output_format: Format = OutputFormat.TABLE,
) -> None:
    """Measure all-reduce by algorithm, size, type and group; fit the links; write a fabric file.

    algorithm="auto" and the predictions read the file. With --check it exits with 1 where
    the median error of sizes that are not in the file is above 15 %.

    Example: weft calibrate --check; weft calibrate --device cuda
    """
    if not 0 < seconds <= MOST_SECONDS:
        raise UserError(f"--seconds {seconds}: must be above 0 and at most {MOST_SECONDS}")
    kind = device_type(device)
    path = default_path(kind) if output is None else output

    def work() -> None:
        from weft.bench.calibration import Calibration
        from weft.bench.calibration import calibrate as measure
        from weft.cli.fabrics import print_fabric
        from weft.fabric.files import save

        start = time.monotonic()

        def publish(result: Calibration) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(result.fabric, path)
            print_fabric(result.fabric, output_format)
            print(f"{path}: measured in {time.monotonic() - start:.0f} s", file=sys.stderr)
            if check:
                _report(result.median_error, len(result.errors))

        measure(name, kind, seconds, timeout, publish, check=check)

    ranks.RankOptions().start(context, Layout(tp=_num_ranks(kind)), work)


def _num_ranks(device: str) -> int:
    if device == "cpu":
        return NUM_RANKS
    import torch

    num_gpus = min(torch.cuda.device_count(), MAX_RANKS)
    if num_gpus < 2:
        raise EnvironmentUnavailable("--device cuda: one GPU has nobody to reduce with")
    return num_gpus


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
