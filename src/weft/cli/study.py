"""``weft study``: the main job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from weft import api
from weft.cli import options, ranks
from weft.cli.option_groups import grouped
from weft.cli.output import OutputFormat, check_folder, print_json, print_rows, progress
from weft.errors import CheckFailed
from weft.study.published import PUBLISHED
from weft.vocabulary.files import write_file
from weft.vocabulary.layout import Layout

LAYOUTS = "1,tp2,tp4,pp2,pp4,tp2xpp2,sp2"

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback()
@grouped
def study(
    *,
    context: typer.Context,
    model: Annotated[str, "Built-in name, directory or hub id."] = "embedded",
    layouts: Annotated[str, "Layouts separated by commas."] = LAYOUTS,
    workload: options.WorkloadName = "paper",
    sizes: options.SizeOptions,
    engine: options.Engine = "weft",
    device: ranks.Device = "auto",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for study.json and report.html.")
    ] = Path(),
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Run layouts of the embedded model here; hold measured, dry-run and closed form together.

    Example: weft study --layouts 1,tp2,tp2xpp2 --decode 32
    """
    if context.invoked_subcommand is not None:
        return
    check_folder(output)
    document = _run(
        model=model,
        layouts=[name.strip() for name in layouts.split(",")],
        workload=sizes.of(workload),
        engine=engine,
        device=device,
    )
    _write(document, output)
    _print(document, output_format)
    checks = document["checks"]
    summary = f"{checks['passed']} of {checks['total']} checks passed"
    if checks["passed"] != checks["total"]:
        raise CheckFailed(f"{summary}; see {output / 'report.html'}")
    if output_format is OutputFormat.TABLE:
        print(f"\nwrote {output / 'study.json'} and {output / 'report.html'}\n{summary}")
        print(*_learnt(document), sep="\n")


def _run(**asked: Any) -> dict[str, Any]:
    tables = len({(entry.model, entry.layout) for entry in PUBLISHED})
    with progress() as bar:
        task = bar.add_task("study", total=len(asked["layouts"]) + tables)

        def advance(name: str) -> None:
            bar.update(task, advance=1, description=f"study: {name} done")

        return api.run_study(**asked, progress=advance).to_dict()


def _write(document: dict[str, Any], output: Path) -> None:
    from weft import report

    write_file(output / "study.json", document)
    page = report.report_of([report.document(document, "study.json")])
    report.write_report(page, output / "report.html")


def _print(document: dict[str, Any], output_format: OutputFormat) -> None:
    if output_format is OutputFormat.JSON:
        print_json(document)
        return
    times = [_times(part) for part in document["layouts"]]
    print_rows(times, output_format, title="Layouts (times of this machine)")


def _learnt(document: dict[str, Any]) -> Iterator[str]:
    """What the tables say, in five lines, and where to go from here."""
    rows = [_times(part) for part in document["layouts"]]
    fastest = min(rows, key=lambda row: row["e2e_ms"])
    least, most = (how(rows, key=lambda row: row["volume_mb"]) for how in (min, max))
    volumes = ", ".join(f"{row['layout']} {row['volume_mb']:,.1f}" for row in rows)
    entries = sum(len(table["rows"]) for table in document["published"])
    yield "\nWhat was learnt:"
    yield f"- {sum(row['rows'] for row in rows)} kinds of calls ran as model code and formulas said."
    yield f"- A request sends, in MB: {volumes}."
    yield f"- {least['layout']} sends least and {most['layout']} most of these."
    yield f"- {fastest['layout']} was fastest here: {fastest['e2e_ms']:,.0f} ms a request."
    yield f"- The papers' tables are reproduced: {entries} entries."
    yield "\nNext:"
    yield "  weft plan llama-3.1-70b --gpus 8 --accelerator h100-sxm"
    yield "  weft import trace_rank*.json.gz --model llama-3.1-8b"
    yield "  weft serve embedded --tp 2"


def _times(part: dict[str, Any]) -> dict[str, Any]:
    rows = part["rows"]
    return {
        "layout": Layout(**part["layout"]).name,
        "ttft_ms": part["ttft_ms"],
        "tpot_ms": part["tpot_ms"],
        "e2e_ms": part["e2e_ms"],
        "volume_mb": part["schedules"]["run"]["totals"]["volume_bytes"] / 1e6,
        "rows": len(rows),
        "equal": sum(row["verdict"] == "equal" for row in rows),
    }
