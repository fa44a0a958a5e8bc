"""``weft bench allreduce``: weft's algorithms and the library's own, side by side."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.bench.sizes import parse_sizes
from weft.cli import ranks
from weft.cli.options import Format
from weft.cli.output import OutputFormat, print_rows, write_text
from weft.errors import UserError
from weft.fabric.fabric import check_shape
from weft.vocabulary.layout import Layout

if TYPE_CHECKING:
    from weft.bench.allreduce import Measurement

DTYPES = ("float32", "bfloat16", "float16", "float64")


def bench_allreduce(
    context: typer.Context,
    nodes: Annotated[int, typer.Option(help="Nodes; virtual ones where all run here.")] = 1,
    ranks_per_node: Annotated[int, typer.Option(help="Ranks in each node.")] = 4,
    sizes: Annotated[str, typer.Option(help="8K:4M (powers of two) or 8K,100,2M.")] = "8K:4M",
    dtypes: Annotated[str, typer.Option(help=f"From {', '.join(DTYPES)}.")] = "float32",
    algorithms: Annotated[str, typer.Option(help="Names with commas, or all.")] = "all",
    rounds: Annotated[int, typer.Option(help="Timed calls of each algorithm at a size.")] = 40,
    device: ranks.Device = "auto",
    timeout: ranks.Timeout = 60.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for bench.json and report.html.")
    ] = None,
    output_format: Format = OutputFormat.TABLE,
) -> None:
    """Time all-reduce algorithms beside the library's own, calls interleaved; check every sum.

    Times are those of the slowest rank from a common start. algbw is bytes over the median,
    busbw algbw times 2(n-1)/n. Exits with 1 where any value was wrong.

    Example: weft bench allreduce --nodes 2 --ranks-per-node 2 --sizes 8K:1M
    """
    check_shape(nodes, ranks_per_node)
    wanted, types = parse_sizes(sizes), _dtypes(dtypes)
    if nodes * ranks_per_node < 2:
        raise UserError("--ranks-per-node 1: one rank alone has nobody to reduce with; use 2")
    if rounds < 5:
        raise UserError(f"--rounds {rounds}: a median needs at least 5")
    if output is not None and not output.is_dir():
        raise UserError(f"--output {output}: is not a folder; create it first")
    if algorithms != "all":
        _check_algorithms(algorithms)

    def work() -> None:
        from weft.bench.allreduce import Effort, check_right, document
        from weft.bench.allreduce_ranks import BenchPlan, known_algorithms, run_benchmark

        plan = BenchPlan(
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            sizes=tuple(wanted),
            dtypes=types,
            algorithms=known_algorithms(algorithms),
            effort=Effort(rounds=rounds),
            device=device,
            timeout_s=timeout,
        )
        result = run_benchmark(plan)
        if result is not None:
            rows, machine = result
            _print(rows, document(rows, machine), output, output_format)
            check_right(rows)

    ranks.on_every_rank(context, Layout(tp=nodes * ranks_per_node), work)


def _dtypes(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in DTYPES:
            raise UserError(
                f"--dtypes {text}: {name!r} is unknown; choose from {', '.join(DTYPES)}"
            )
    return names


def _check_algorithms(text: str) -> None:
    """Refuse an unknown name before any rank is started."""
    from weft.bench.allreduce_ranks import known_algorithms

    known_algorithms(text)


def _print(
    rows: list[Measurement],
    document: dict[str, Any],
    output: Path | None,
    output_format: OutputFormat,
) -> None:
    if output is not None:
        from weft.report import read_document, report_of, write_report

        path = output / "bench.json"
        write_text(path, json.dumps(document, indent=1) + "\n")
        write_report(report_of([read_document(path)]), output / "report.html")
    machine = document["machine"]
    title = (
        f"all-reduce · {machine['ranks']} ranks on {machine['nodes']} node(s) · "
        f"backend {machine['backend']} · {machine['cpu']} x {machine['cores']}"
    )
    print_rows([_cells(row, rows) for row in rows], output_format, title=title, document=document)


def _cells(row: Measurement, rows: list[Measurement]) -> dict[str, Any]:
    backend = next(
        item
        for item in rows
        if (item.algorithm, item.bytes, item.dtype) == ("backend", row.bytes, row.dtype)
    )
    cells = asdict(row)
    for name in ("min_us", "median_us", "max_us"):
        cells[name] = round(cells[name], 1)
    for name in ("algbw_gb_s", "busbw_gb_s"):
        cells[name] = float(f"{cells[name]:.4g}")
    return cells | {"x_backend": round(row.median_us / backend.median_us, 3)}
