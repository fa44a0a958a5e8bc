"""``weft bench allreduce``: weft's algorithms and the library's own, side by side."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.bench.sizes import parse_sizes
from weft.cli import ranks
from weft.cli.options import Format
from weft.cli.output import OutputFormat, print_rows
from weft.errors import UserError
from weft.fabric.fabric import check_shape
from weft.fabric.fingerprint import describe
from weft.launch.environment import device_type
from weft.vocabulary.files import write_file
from weft.vocabulary.layout import Layout

if TYPE_CHECKING:
    from weft.bench.allreduce import Measurement

DTYPES = {
    "cpu": ("float32", "bfloat16", "float16", "float64"),
    "cuda": ("bfloat16", "float32", "float16"),
}
"""What can be added on a device, the default first."""

MODES = {"cpu": ("eager",), "cuda": ("graph", "eager")}
"""How calls are launched on a device, the default first."""


def bench_allreduce(
    context: typer.Context,
    nodes: Annotated[int, typer.Option(help="Nodes; virtual ones where all run here.")] = 1,
    ranks_per_node: Annotated[int, typer.Option(help="Ranks in each node.")] = 4,
    sizes: Annotated[str, typer.Option(help="8K:4M (powers of two) or 8K,100,2M.")] = "8K:4M",
    dtypes: Annotated[
        str | None,
        typer.Option(help=f"From {', '.join(DTYPES['cpu'])} [float32; bfloat16 on GPUs]."),
    ] = None,
    algorithms: Annotated[str, typer.Option(help="Names with commas, or all.")] = "all",
    rounds: Annotated[int, typer.Option(help="Timed calls of each algorithm at a size.")] = 40,
    device: ranks.Device = "auto",
    mode: Annotated[
        str | None, typer.Option(help="eager, or on GPUs graph (captured) [graph on GPUs].")
    ] = None,
    transports: Annotated[
        str, typer.Option(help="Between nodes of GPUs, with commas: peer, nvshmem, tcp.")
    ] = "peer",
    timeout: ranks.Timeout = 60.0,
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
    check_shape(nodes, ranks_per_node)
    wanted = parse_sizes(sizes)
    if nodes * ranks_per_node < 2:
        raise UserError("--ranks-per-node 1: one rank alone has nobody to reduce with; use 2")
    if rounds < 5:
        raise UserError(f"--rounds {rounds}: a median needs at least 5")
    if output is not None and not output.is_dir():
        raise UserError(f"--output {output}: is not a folder; create it first")
    kind = device_type(device)
    types = _dtypes(dtypes, kind)
    chosen_mode = _one_of("--mode", mode, MODES[kind], kind)
    links, names = _algorithms(algorithms, transports, nodes, ranks_per_node, kind)

    def work() -> None:
        from weft.bench.allreduce import Effort, document
        from weft.bench.allreduce_ranks import BenchPlan, run_benchmark

        plan = BenchPlan(
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            sizes=tuple(wanted),
            dtypes=types,
            algorithms=names,
            effort=Effort(rounds=rounds),
            device=kind,
            timeout_s=timeout,
            mode=chosen_mode,
            transports=links,
        )
        run_benchmark(
            plan,
            lambda rows, machine: _print(rows, document(rows, machine), output, output_format),
        )

    ranks.RankOptions().start(context, Layout(tp=nodes * ranks_per_node), work)


def _dtypes(text: str | None, device: str) -> tuple[str, ...]:
    known = DTYPES[device]
    names = known[:1] if text is None else tuple(part.strip() for part in text.split(","))
    return tuple(_one_of("--dtypes", name, known, device) for name in names)


def _one_of(option: str, value: str | None, known: tuple[str, ...], device: str) -> str:
    if value is None:
        return known[0]
    if value not in known:
        raise UserError(
            f"{option} {value}: {value!r} is unknown with --device {device}; "
            f"choose from {', '.join(known)}"
        )
    return value


def _algorithms(
    text: str, transports: str, nodes: int, ranks_per_node: int, device: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(transports, algorithms), refused before any rank is started."""
    from weft.bench.allreduce_ranks import (
        known_algorithms,
        known_device_algorithms,
        known_transports,
    )

    links = known_transports(transports, nodes)
    if device == "cuda":
        return links, known_device_algorithms(text, nodes, ranks_per_node, links)
    if transports != "peer":
        raise UserError(f"--transports {transports}: for GPUs; leave it out with --device cpu")
    return links, known_algorithms(text)


def _print(
    rows: list[Measurement],
    document: dict[str, Any],
    output: Path | None,
    output_format: OutputFormat,
) -> None:
    if output is not None:
        from weft.report import read_document, report_of, write_report

        path = output / "bench.json"
        write_file(path, document)
        write_report(report_of([read_document(path)]), output / "report.html")
    machine = document["machine"]
    title = (
        f"all-reduce · {machine['ranks']} ranks on {machine['nodes']} node(s) · {machine['mode']} · "
        f"backend {machine['backend']} · {describe(machine)}"
    )
    if machine.get("unavailable"):
        print(f"not measured: {machine['unavailable']}", file=sys.stderr)
    print_rows([_cells(row, rows) for row in rows], output_format, title=title, document=document)


def _cells(row: Measurement, rows: list[Measurement]) -> dict[str, Any]:
    backend = next(
        item
        for item in rows
        if (item.algorithm, item.bytes, item.dtype) == ("backend", row.bytes, row.dtype)
    )
    cells = asdict(row)
    for name in ("min_us", "median_us", "max_us"):
        cells[name] = round(cells[name], 2)
    for name in ("algbw_gb_s", "busbw_gb_s"):
        cells[name] = float(f"{cells[name]:.4g}")
    return cells | {"x_backend": round(row.median_us / backend.median_us, 3)}
