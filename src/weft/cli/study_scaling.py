"""``weft study scaling``: where a step's time goes as ranks are added."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli import options, ranks
from weft.cli.output import OutputFormat, check_folder, print_rows, progress
from weft.errors import UserError
from weft.launch.environment import device_type
from weft.study.scaling import ALL_REDUCES, ScalingPlan, run_scaling
from weft.vocabulary.files import write_file
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload, workload_named

WORKLOADS = {
    "prefill-heavy": Workload(prompt_tokens=256, decode_tokens=8, batch=4),
    "decode-heavy": Workload(prompt_tokens=32, decode_tokens=48, batch=4),
}
"""Small enough for a CPU; on GPUs the named workloads themselves are run."""


def study_scaling(
    *,
    model: Annotated[str, typer.Option(help="Built-in name, directory or hub id.")] = "embedded",
    layouts: Annotated[
        str, typer.Option(help="Layouts separated by commas; speed-ups are over the first.")
    ] = "1,tp2,tp4,pp2,tp2xpp2",
    workloads: Annotated[str, typer.Option(help=f"From {', '.join(WORKLOADS)}.")] = ",".join(
        WORKLOADS
    ),
    all_reduce: Annotated[
        str, typer.Option(help="library (gloo's or NCCL's own), weft, or both with a comma.")
    ] = ",".join(ALL_REDUCES),
    sizes: options.SizeOptions,
    device: ranks.Device = "auto",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for scaling.json and scaling.html.")
    ] = Path(),
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Run layouts here; split each step into compute, communication, wait and idle.

    Example: weft study scaling --layouts 1,tp2,pp2 --workloads decode-heavy
    """
    check_folder(output)
    on = device_type(device)
    plan = ScalingPlan(
        model=model,
        layouts=tuple(Layout.parse(name.strip()) for name in layouts.split(",")),
        workloads=_workloads(workloads, on, sizes),
        device=on,
        all_reduces=tuple(name.strip() for name in all_reduce.split(",")),
    )
    plan.check()
    with progress() as bar:
        task = bar.add_task("scaling", total=len(plan.layouts))
        document = run_scaling(
            plan, lambda name: bar.update(task, advance=1, description=f"scaling: {name} done")
        )
    write_file(output / "scaling.json", document)
    _write_report(document, output / "scaling.html")
    print_rows(document["rows"], output_format, document=document)


def _write_report(document: dict[str, Any], path: Path) -> None:
    from weft import report

    page = report.report_of([report.document(document, "scaling.json")])
    report.write_report(page, path)


def _workloads(names: str, device: str, sizes: options.SizeOptions) -> dict[str, Workload]:
    chosen = {}
    for name in (part.strip() for part in names.split(",")):
        if name not in WORKLOADS:
            raise UserError(f"--workloads {name}: unknown; choose from {', '.join(WORKLOADS)}")
        chosen[name] = sizes.on(WORKLOADS[name] if device == "cpu" else workload_named(name))
    return chosen
