"""``weft fabrics``: the built-in fabrics, or one fabric with the source of every number."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from weft.cli.options import Format
from weft.cli.output import OutputFormat, print_rows
from weft.fabric import Fabric, load
from weft.fabric.builtin import BUILTIN_FABRICS
from weft.fabric.files import to_json
from weft.fabric.local import checked


def fabrics(
    name: Annotated[
        str | None, typer.Argument(help="One fabric (name or file); all built-in if left out.")
    ] = None,
    output_format: Format = OutputFormat.TABLE,
) -> None:
    """List the built-in fabrics, or show one with its sources and measured tables.

    Example: weft fabrics a100-slingshot11
    """
    if name is None:
        all_of_them = list(BUILTIN_FABRICS.values())
        document = [to_json(fabric) for fabric in all_of_them]
        print_rows([_summary(fabric) for fabric in all_of_them], output_format, document=document)
        return
    print_fabric(checked(load(name)), output_format)


def print_fabric(fabric: Fabric, output_format: OutputFormat) -> None:
    """Every number of a fabric with its uncertainty and source; JSON is the fabric file."""
    print_rows(_numbers(fabric), output_format, title=fabric.name, document=to_json(fabric))


def _summary(fabric: Fabric) -> dict[str, Any]:
    return {
        "fabric": fabric.name,
        "gpus_per_node": fabric.gpus_per_node,
        "nics_per_node": fabric.nics_per_node or fabric.gpus_per_node,
        "intra_us": fabric.intra.latency_us,
        "intra_gb_s": fabric.intra.bandwidth_gb_s,
        "inter_us": fabric.inter.latency_us,
        "inter_gb_s": fabric.inter.bandwidth_gb_s,
        "call_us": fabric.call_us,
        "measured_tables": len(fabric.tables),
    }


def _numbers(fabric: Fabric) -> list[dict[str, Any]]:
    rows = [_row("call_us", fabric.call_us, fabric.call_uncertainty_us, fabric.call_source)]
    for name in ("intra", "inter"):
        tier = fabric.tier(name)
        rows += [
            _row(
                f"{name} latency_us",
                tier.latency_us,
                tier.latency_uncertainty_us,
                tier.latency_source,
            ),
            _row(
                f"{name} bandwidth_gb_s",
                tier.bandwidth_gb_s,
                tier.bandwidth_uncertainty_gb_s,
                tier.bandwidth_source,
            ),
        ]
    rows += [
        _row(
            f"{table.algorithm}, {table.nodes} x {table.ranks // table.nodes}, {table.dtype}",
            table.latency_us[0],
            None,
            f"{len(table.bytes)} sizes from {table.bytes[0]} bytes (value: µs there); {table.source}",
        )
        for table in fabric.tables
    ]
    return rows


def _row(what: str, value: float, uncertainty: float | None, source: str) -> dict[str, Any]:
    return {"number": what, "value": value, "uncertainty": uncertainty, "source": source}
