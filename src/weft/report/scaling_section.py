"""Sections from ``weft study scaling`` (``weft.scaling/1``)."""

from __future__ import annotations

from typing import Final

from weft.report import figures
from weft.report.blocks import Block, Cell, Chart, Section, Table
from weft.report.node import Node

KINDS: Final = ("compute", "communication", "wait", "idle")
PHASES: Final = ("prefill", "decode")


def scaling_title(scaling: Node) -> str:
    return f"Scaling of {scaling.child('model').text()}"


def scaling_summary(scaling: Node) -> str:
    rows = scaling.child("rows").elements()
    layouts = len({row.child("layout").text() for row in rows})
    most = max((row.child("ranks").integer() for row in rows), default=0)
    return f"{layouts} layouts of up to {most} ranks on {scaling.child('device').text()}"


def sections_of_scaling(scaling: Node) -> list[Section]:
    """A section a workload: where a step's time goes in each phase, then every row."""
    rows = scaling.child("rows").elements()
    return [
        _section(name, [row for row in rows if row.child("workload").text() == name])
        for name, _ in scaling.child("workloads").items()
    ]


def _section(workload: str, rows: list[Node]) -> Section:
    blocks: list[Block] = []
    for phase in PHASES:
        of_phase = [row for row in rows if row.child("phase").text() == phase]
        if of_phase:
            blocks.append(_chart(phase, of_phase))
    blocks.append(
        Table(
            caption="Every layout",
            rows=[_cells(row) for row in rows],
            note="Mean over the ranks; the speed-up is that of the whole request over the first layout.",
        )
    )
    return Section(title=workload, blocks=blocks)


def _chart(phase: str, rows: list[Node]) -> Chart:
    bars = {
        f"{row.child('layout').text()} {row.child('all_reduce').text()}": {
            kind: row.child(f"{kind}_ms").number() for kind in KINDS
        }
        for row in rows
    }
    return Chart(
        title=f"One step of {phase}",
        figure=figures.stacked_bars(bars, x_title="milliseconds a step"),
        note="Waiting ends when the last rank has come; idle is the time without any work.",
    )


def _cells(row: Node) -> dict[str, Cell]:
    cells: dict[str, Cell] = {
        key: row.child(key).text() for key in ("layout", "all_reduce", "phase")
    }
    cells["steps"] = row.child("steps").integer()
    for key in ("step_ms", *(f"{kind}_ms" for kind in KINDS), "e2e_ms", "speedup"):
        cells[key] = row.child(key).number()
    return cells
