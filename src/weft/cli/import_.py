"""``weft import``: what a real engine's traces say, against what it should have sent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from weft.cli.options import Format
from weft.cli.output import OutputFormat, check_file, print_rows, progress
from weft.cli.schedule_output import row_cells
from weft.errors import CheckFailed

if TYPE_CHECKING:
    from weft.importer.imported import ImportedTrace
    from weft.importer.rows import MeasuredRow
    from weft.vocabulary.schedule import Statistics


_MOST_PLACES: Final = 10


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="PyTorch profiler traces (.json or .json.gz), one a rank, or a folder."
        ),
    ],
    model: Annotated[str | None, "The model that ran: name, directory or hub id."] = None,
    engine: Annotated[str, "auto, vllm, vllm-cpu, vllm-v0, sglang, trtllm or torch."] = "auto",
    layout: Annotated[
        str | None,
        "The run's layout, e.g. tp2xpp2; read off the trace if not given.",
    ] = None,
    output_format: Format = OutputFormat.TABLE,
    against: Annotated[
        list[Path] | None,
        "Traces of another run to compare with, e.g. before an upgrade.",
    ] = None,
    fabric: Annotated[
        str | None,
        "Say what the best all-reduce on this fabric would gain; see weft fabrics.",
    ] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(
            help="Also write a trace for ui.perfetto.dev (.json or .json.gz).", callback=check_file
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML report.", callback=check_file)
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that read files [one a core].")
    ] = None,
) -> None:
    """Read the traces of a run's ranks; print their collectives and check them.

    Leaves with 1 where the engine did not send what its schedule says.
    Example: weft import rank0.json.gz rank1.json.gz --model llama-3.1-8b
    """
    from weft import api
    from weft.importer.inputs import trace_files

    with progress() as bar:
        size = sum(file.stat().st_size for file in trace_files(files)[0] if file.is_file())
        task = bar.add_task("reading traces", total=size)
        imported = api.import_traces(
            files,
            model=model,
            engine=engine,
            layout=layout,
            fabric=fabric,
            jobs=jobs,
            progress=lambda count: bar.advance(task, count),
        )
    before = api.import_traces(against, model=model, engine=engine) if against else None
    if perfetto is not None:
        from weft.importer.perfetto import write_perfetto

        write_perfetto(imported, perfetto)
    if report is not None:
        _write_report(_document(imported, before), report)
    _print(imported, before, output_format)
    if imported.conformance.conforms is False:
        raise CheckFailed(f"does not conform: {imported.conformance.reason}")


def _write_report(content: dict[str, Any], path: Path) -> None:
    from weft.report import document, report_of, write_report

    write_report(report_of([document(content, "import")]), path)


def _document(imported: ImportedTrace, before: ImportedTrace | None) -> dict[str, Any]:
    from weft.importer.compared import changes_json

    against = {"against": changes_json(before, imported)} if before else {}
    return imported.to_dict() | against


def _print(
    imported: ImportedTrace, before: ImportedTrace | None, output_format: OutputFormat
) -> None:
    from weft.importer.compared import changes

    schedule = imported.schedule
    layout = schedule.layout.name if imported.run.is_known else "layout unknown"
    title = f"{schedule.model.name} · {layout} · engine {schedule.engine} · import"
    rows = [_row(row) for row in imported.rows]
    document = _document(imported, before) if output_format is OutputFormat.JSON else None
    verdict = imported.conformance
    if output_format is OutputFormat.TABLE:
        print(f"{verdict.verdict}: {verdict.reason}")
    print_rows(rows, output_format, title=title, document=document)
    if output_format is OutputFormat.TABLE:
        for line in _remarks(imported):
            print(line)
        for change in changes(before, imported) if before else ():
            print(f"{'as before' if change.is_alike else 'changed'}: {change.text()}")
    elif output_format is OutputFormat.CSV and imported.is_partial:
        print("weft: warning: partial (see --format table)", file=sys.stderr)


def _row(measured: MeasuredRow) -> dict[str, Any]:
    row = measured.row
    cells = row_cells(row)
    for name in ("volume_bytes", "provenance"):
        del cells[name]
    return cells | {
        "size_from": None if row.message_bytes is None else row.provenance,
        "min_us": _of(row.duration_us, "min"),
        "median_us": _of(row.duration_us, "median"),
        "max_us": _of(row.duration_us, "max"),
        "total_us": _of(row.duration_us, "total"),
        "wait_us": _of(row.wait_us, "median"),
        "transfer_us": _of(row.transfer_us, "median"),
        "bound": row.bound,
        "algbw_gb_s": measured.algbw_gb_s,
        "busbw_gb_s": measured.busbw_gb_s,
        "exposed_us": measured.exposed_us,
    }


def _of(statistics: Statistics | None, name: str) -> float | None:
    return None if statistics is None else getattr(statistics, name)


def _remarks(imported: ImportedTrace) -> list[str]:
    lines = []
    for clock in imported.clocks:
        if clock.rank != clock.reference:
            low = "unbounded" if clock.low_us is None else f"{clock.low_us:.1f}"
            high = "unbounded" if clock.high_us is None else f"{clock.high_us:.1f}"
            drift = f"; drifts by {clock.drift_ppm:.1f} us a second" if clock.drift_ppm else ""
            drift += "" if clock.is_consistent else "; the bounds contradict each other"
            lines.append(
                f"clock of rank {clock.rank} against rank {clock.reference}: "
                f"{clock.offset_us:.1f} us (from {low} to {high}){drift}"
            )
    if any(row.row.bound for row in imported.rows):
        lines.append(
            "bound upper: times include waiting, for ranks whose traces are not here or on clocks "
            "that are not known well enough"
        )
    for kind, listed in (("control", imported.control), ("unexplained", imported.unexplained)):
        lines += [f"{kind}: {c.count} x {c.name} ({c.phase}): {c.reason}" for c in listed]
    lines += [f"where: {d.text()}" for d in imported.conformance.deviations[:_MOST_PLACES]]
    lines += [gain.text() for gain in imported.gains]
    lines += [replica.text() for replica in imported.replicas]
    lines += [f"note: {note}" for note in imported.notes]
    return lines
