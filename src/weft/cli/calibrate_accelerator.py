"""``weft calibrate accelerator``: measure this machine's device for the predictor."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import options
from weft.cli.output import OutputFormat, check_file, print_rows
from weft.vocabulary.files import write_file

if TYPE_CHECKING:
    from weft.prediction.quantity import Quantity


def calibrate_accelerator(
    device: Annotated[str | None, "cuda, cuda:1 or cpu [the GPU if there is one]."] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File to write, for --accelerator.", callback=check_file
        ),
    ] = Path("accelerator.json"),
    beside: Annotated[
        str | None,
        "Print another accelerator's numbers beside: a built-in name or a file.",
    ] = None,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Measure matrix products, memory, attention, launches and a step's host time.

    Example: weft calibrate accelerator -o here.json; weft plan llama-3.2-1b --gpus 1
    --accelerator here.json --fabric h200-nvlink
    """
    from weft.calibration.calibrate_accelerator import calibrate_accelerator as measure
    from weft.calibration.calibrate_accelerator import doubts
    from weft.prediction.accelerator import accelerator_to_json, load_accelerator

    other = {} if beside is None else load_accelerator(beside).quantities()
    start = time.monotonic()
    found = measure(device, lambda part: print(f"measuring {part}", file=sys.stderr))
    document = accelerator_to_json(found)
    write_file(output, document)
    rows = [_row(name, item, other.get(name)) for name, item in found.quantities().items()]
    print_rows(rows, output_format, title=found.name, document=document)
    print(f"{output}: measured in {time.monotonic() - start:.0f} s", file=sys.stderr)
    if reason := doubts(found):
        print(f"measure again: {reason}; is the machine busy?", file=sys.stderr)


def _row(name: str, item: Quantity, other: Quantity | None) -> dict[str, Any]:
    row: dict[str, Any] = {"quantity": name, "value": float(f"{item.value:.4g}")}
    if other is not None:
        row["beside"] = other.value
        row["ratio"] = float(f"{item.value / other.value:.3g}") if other.value else None
    return row | {"source": item.source}
