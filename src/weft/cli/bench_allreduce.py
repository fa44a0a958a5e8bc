"""``weft bench allreduce``: weft's algorithms and the library's own, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from weft.bench.allreduce_bench import AllReduceBench
from weft.cli import ranks
from weft.cli.options import Format
from weft.cli.output import OutputFormat, check_folder, print_rows
from weft.fabric.fingerprint import describe
from weft.launch.environment import current_rank
from weft.vocabulary.files import write_file
from weft.vocabulary.layout import Layout


def bench_allreduce(
    *,
    context: typer.Context,
    bench: AllReduceBench,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for bench.json and report.html.")
    ] = None,
    output_format: Format = OutputFormat.TABLE,
) -> None:
    """Time all-reduce algorithms beside the library's own, calls interleaved; check every sum.

    Times are those of the slowest rank from a common start. algbw is bytes over the median,
    busbw algbw times 2(n-1)/n. Exits with 1 where any value was wrong. On GPUs NCCL, NCCL on
    symmetric buffers and torch's symmetric memory are measured too, and fused_rms_norm; with
    --transports tcp NCCL takes virtual nodes for hosts.

    Example: weft bench allreduce --nodes 2 --ranks-per-node 2 --sizes 8K:1M
    """
    if output is not None:
        check_folder(output)
    bench.plan()

    def work() -> None:
        from weft.bench.allreduce import check_right

        result = bench.run()
        if current_rank().rank == 0:
            _print(result.to_dict(), output, output_format)
            check_right(result.rows)

    ranks.RankOptions().start(context, Layout(tp=bench.num_ranks), work)


def _print(document: dict[str, Any], output: Path | None, output_format: OutputFormat) -> None:
    if output is not None:
        from weft.report import read_document, report_of, write_report

        path = write_file(output / "bench.json", document)
        write_report(report_of([read_document(path)]), output / "report.html")
    machine, rows = document["machine"], document["rows"]
    title = (
        f"all-reduce · {machine['ranks']} ranks on {machine['nodes']} node(s) · {machine['mode']} · "
        f"backend {machine['backend']} · {describe(machine)}"
    )
    if machine.get("unavailable"):
        print(f"not measured: {machine['unavailable']}", file=sys.stderr)
    print_rows([_cells(row, rows) for row in rows], output_format, title=title, document=document)


def _cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    backend = next(
        item
        for item in rows
        if (item["algorithm"], item["bytes"], item["dtype"])
        == ("backend", row["bytes"], row["dtype"])
    )
    cells = dict(row)
    for name in ("min_us", "median_us", "max_us"):
        cells[name] = round(cells[name], 2)
    for name in ("algbw_gb_s", "busbw_gb_s"):
        cells[name] = float(f"{cells[name]:.4g}")
    return cells | {"x_backend": round(row["median_us"] / backend["median_us"], 3)}
