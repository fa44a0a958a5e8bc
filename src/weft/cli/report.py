"""``weft report``: one HTML file from the JSON that other commands wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weft.cli.output import check_file
from weft.errors import UserError


def report(
    files: Annotated[
        list[Path],
        typer.Argument(help="JSON of weft predict, trace, import, study, bench or plan."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The HTML file to write.", callback=check_file)
    ] = Path("report.html"),
) -> None:
    """Write one self-contained HTML report of the given results.

    Example: weft predict llama-3.1-8b --tp 2 --format json > tp2.json && weft report tp2.json
    """
    from weft.report import read_document, report_of, write_report

    for file in files:
        if file.resolve() == output.resolve():
            raise UserError(f"--output {output}: is also an input; name another file")
    write_report(report_of([read_document(file) for file in files]), output)
    print(output)
