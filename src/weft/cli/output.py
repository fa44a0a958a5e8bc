"""Printing for every command: tables, JSON and CSV on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from weft.errors import EnvironmentUnavailable, UserError


class OutputFormat(StrEnum):
    """The value of ``--format``."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class GuardedStdout:
    """stdout of a command: what cannot be written is kept back until the command has ended.

    Its checks and files are then complete, whatever reads its output.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.error: OSError | None = None
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def check(self) -> None:
        """Raise EnvironmentUnavailable where output was lost, unless its reader wanted no more."""
        self.flush()
        if self.error is not None and not isinstance(self.error, BrokenPipeError):
            raise EnvironmentUnavailable(f"cannot write to stdout: {self.error.strerror}")

    def _try(self, act: Callable[[TextIO], object]) -> None:
        try:
            if self._stream is None:
                raise OSError(errno.EBADF, "it is closed")
            act(self._stream)
        except OSError as error:
            self.error = self.error or error
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


@contextmanager
def guarded_stdout() -> Iterator[GuardedStdout]:
    """Print through a GuardedStdout while the context is open."""
    before, guard = sys.stdout, GuardedStdout(sys.stdout)
    sys.stdout = guard
    try:
        yield guard
    finally:
        sys.stdout = before
        if guard.error is not None and before is not None:
            _forget(before)


def _forget(stream: TextIO) -> None:
    """Python flushes stdout when it ends: what is left goes nowhere."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), stream.fileno())


def check_written() -> None:
    """Raise EnvironmentUnavailable where stdout did not take what was printed."""
    if isinstance(sys.stdout, GuardedStdout):
        sys.stdout.check()


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
    width = table_width()
    cells = [{name: _cell(value) for name, value in row.items()} for row in rows]
    names = _fitting(cells, width)
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in names:
        is_number = isinstance(rows[0][name], int | float)
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(row[name] for name in names))
    Console(width=width, highlight=False).print(table)
    if rows and len(names) < len(rows[0]):
        left = ", ".join(name for name in rows[0] if name not in names)
        print(f"columns not shown: {left} (a wider terminal or --format csv has them)")


def table_width() -> int:
    """Columns of the terminal; plenty where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 320


def _fitting(cells: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """The first columns that a table of this width has room for; one at least."""
    names: list[str] = []
    used = 1
    for name in cells[0] if cells else ():
        used += max(len(name), *(len(row[name]) for row in cells)) + 3
        if names and used > width:
            break
        names.append(name)
    return names


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def check_file(path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: refused before anything is done."""
    if path is not None and path.is_dir():
        raise typer.BadParameter("is a folder; name a file")
    if path is not None and not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.absolute().parent}; create it first")
    return path


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
