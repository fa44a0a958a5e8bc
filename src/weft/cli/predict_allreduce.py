"""``weft predict allreduce``: every algorithm and NCCL on any number of nodes, in closed form."""

from __future__ import annotations

from typing import Annotated, Any

from weft.allreduce import scale
from weft.bench.sizes import parse_sizes, size_text
from weft.cli.options import Format
from weft.cli.output import OutputFormat, print_rows
from weft.errors import UserError
from weft.fabric import Fabric, load
from weft.fabric.fabric import check_shape


def predict_allreduce(
    nodes: Annotated[int, "Nodes."] = 16,
    gpus_per_node: Annotated[int | None, "GPUs a node [the fabric's]."] = None,
    fabric: Annotated[str, "Built-in name or file; see weft fabrics."] = ("a100-slingshot11"),
    sizes: Annotated[str, "128K:2M (powers of two) or 8K,100,2M."] = "128K:2M",
    output_format: Format = OutputFormat.TABLE,
) -> None:
    """Predict the latency of an all-reduce by algorithm, in µs, beside NCCL's best.

    Example: weft predict allreduce --nodes 16 --gpus-per-node 4 --fabric a100-slingshot11
    """
    links = load(fabric)
    width = links.gpus_per_node if gpus_per_node is None else gpus_per_node
    check_shape(nodes, width)
    if nodes * width < 2:
        raise UserError("--nodes 1: one rank alone has nobody to reduce with; use --nodes 2")
    wanted = parse_sizes(sizes)
    rows = scale.predict(wanted, nodes, width, links)
    changes = scale.crossovers(wanted, nodes, width, links)
    document = _document(rows, changes, nodes, width, links)
    title = f"all-reduce in µs · {nodes} x {width} ranks · {links.name}"
    print_rows([_cells(row) for row in rows], output_format, title=title, document=document)
    if output_format is OutputFormat.TABLE:
        for line in _notes(rows, changes, nodes):
            print(line)


def _cells(row: scale.SizeRow) -> dict[str, Any]:
    times = {name: float(f"{time:.4g}") for name, time in row.times_us.items()}
    ratio = {"nccl/best": round(row.speed_up, 2)} if "nccl" in times else {}
    return {"bytes": row.bytes} | times | {"best": row.best} | ratio


def _notes(rows: list[scale.SizeRow], changes: list[scale.Crossover], nodes: int) -> list[str]:
    notes = [
        f"from {change.bytes:,} bytes on {change.after} is faster than {change.before}"
        for change in changes
    ]
    found = scale.published_range(rows) if nodes > 1 and "nccl" in rows[0].times_us else None
    if found is not None:
        low, high = scale.PUBLISHED_SPEED_UP
        first, last = map(size_text, scale.PUBLISHED_BYTES)
        notes.append(
            f"hierarchical_doubling over NCCL's best, {first}-{last}: {found[0]:.1f}-{found[1]:.1f}x here, "
            f"published {low}-{high}x (what differs: docs/allreduce.md)"
        )
    return notes


def _document(
    rows: list[scale.SizeRow],
    changes: list[scale.Crossover],
    nodes: int,
    width: int,
    links: Fabric,
) -> dict[str, Any]:
    return {
        "schema": "weft.prediction.allreduce/1",
        "fabric": links.name,
        "nodes": nodes,
        "gpus_per_node": width,
        "rows": [{"bytes": row.bytes, "times_us": row.times_us, "best": row.best} for row in rows],
        "crossovers": [
            {"bytes": item.bytes, "before": item.before, "after": item.after} for item in changes
        ],
        "published_speed_up": list(scale.PUBLISHED_SPEED_UP),
    }
