"""Printing for every command: tables, JSON and CSV on stdout, progress on stderr."""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from weft.errors import UserError


class OutputFormat(StrEnum):
    """The value of ``--format``."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def print_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    json.dump(document, sys.stdout, indent=1)
    sys.stdout.write("\n")


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    output_format: OutputFormat,
    *,
    title: str | None = None,
    document: Any = None,
) -> None:
    """Print ``rows`` (equal keys in equal order) in the chosen format.

    ``document`` is the JSON form where it is more than the rows.
    """
    if output_format is OutputFormat.JSON:
        print_json(list(rows) if document is None else document)
    elif output_format is OutputFormat.CSV:
        _print_csv(rows)
    else:
        _print_table(rows, title)


def _print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _print_table(rows: Sequence[Mapping[str, Any]], title: str | None) -> None:
    table = Table(title=title, title_justify="left", header_style="bold")
    for name, value in (rows[0] if rows else {}).items():
        table.add_column(name, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    width = None if sys.stdout.isatty() else 320
    Console(width=width, highlight=False).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary file beside it takes its name when complete."""
    if not path.name:
        raise UserError(f"cannot write {path}: it is a folder; name a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def check_folder(path: Path) -> None:
    """UserError unless ``path`` is a folder that files can be written to; before long work."""
    if not path.is_dir():
        raise UserError(f"--output {path}: is not a folder; create it first")
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(
            f"--output {path}: cannot write there ({error.strerror}); choose another folder"
        ) from None


def progress() -> Progress:
    """A progress bar on stderr, silent where stderr is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
