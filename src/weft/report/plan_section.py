"""Sections from ``weft plan`` (``weft.plan/1``) and its scoreboard (``weft.scoreboard/1``)."""

from __future__ import annotations

from collections.abc import Callable

from weft.report import figures
from weft.report.blocks import Block, Cell, Chart, Facts, Prose, Section, Table
from weft.report.node import Node
from weft.report.prediction_section import estimate_text, estimate_value
from weft.report.rows import layout_name


def plan_summary(plan: Node) -> str:
    plans, rejected = plan.child("plans").elements(), plan.child("rejected").elements()
    counts = f"{len(plans):,} layouts ranked, {len(rejected):,} rejected"
    if not plans:
        return f"no layout fits; {counts}"
    return f"best: {_name(plans[0])} at {estimate_text(plans[0].child('tpot_ms'), 'ms')} TPOT; {counts}"


def sections_of_plan(plan: Node) -> list[Section]:
    """The ranked layouts (best first), where their time goes, and why the others cannot run."""
    plans, rejected = plan.child("plans").elements(), plan.child("rejected").elements()
    blocks: list[Block] = [Facts(items=_facts(plan))]
    if plans:
        blocks.append(Table(caption="Layouts, best first", rows=[_cells(node) for node in plans]))
        blocks += _charts(plans, plan.child("pareto").elements())
    else:
        blocks.append(Prose(text="No layout fits; the reasons are below."))
    sections = [Section(title="Plan", blocks=blocks)]
    if rejected:
        rows: list[dict[str, Cell]] = [
            {"layout": layout_name(node.child("layout")), "reason": node.child("reason").text()}
            for node in rejected
        ]
        table = Table(caption="Layouts that cannot run", rows=rows, folded=len(rows) > 20)
        sections.append(Section(title="Rejected", blocks=[table]))
    return sections


def _facts(plan: Node) -> dict[str, Cell]:
    facts: dict[str, Cell] = {"model": plan.child("model").text()}
    if "objective" in plan:
        facts["objective"] = plan.child("objective").text()
    for part in ("machine", "workload"):
        facts |= {key: node.cell() for key, node in plan.child(part).items()}
    return facts


def _layout(node: Node) -> str:
    return layout_name(node.child("layout"))


def _name(node: Node) -> str:
    name = _layout(node)
    return f"{name}, batch {node.child('batch').integer():,}" if "batch" in node else name


def _cells(node: Node) -> dict[str, Cell]:
    return {
        "layout": _layout(node),
        "batch": node.child("batch").optional_integer(),
        "TTFT": estimate_text(node.child("ttft_ms"), "ms"),
        "TPOT": estimate_text(node.child("tpot_ms"), "ms"),
        "tokens/s per GPU": estimate_value(node.child("throughput_per_gpu")),
        "memory_gib": node.child("memory_gib").optional_number(),
        "note": node.child("note").cell(),
    }


def _points(
    plans: list[Node], front: list[Node], name: Callable[[Node], str]
) -> list[figures.LayoutPoint]:
    """The ranked layouts, and the front: its own list, or the plans that say they are on it."""
    return [
        figures.LayoutPoint(
            name=name(node),
            tpot_ms=estimate_value(node.child("tpot_ms")),
            throughput_per_gpu=estimate_value(node.child("throughput_per_gpu")),
            on_front=is_front,
        )
        for node, is_front in (
            [(node, not front and node.child("on_front").value is True) for node in plans]
            + [(node, True) for node in front]
        )
    ]


def _charts(plans: list[Node], front: list[Node]) -> list[Block]:
    batches = {node.child("batch").cell() for node in [*plans, *front]}
    name = _name if len(batches) > 1 else _layout
    charts: list[Block] = [
        Chart(
            title="Throughput against latency",
            figure=figures.pareto_front(_points(plans, front, name)),
            note="No layout and batch beats a point of the front in both.",
        )
    ]
    parts = {
        name(node): node.child("breakdown_us").numbers()
        for node in plans[:12]
        if "breakdown_us" in node
    }
    if parts:
        figure = figures.stacked_bars(parts, x_title="time of one decode step (µs)")
        charts.append(Chart(title="Where a decode step's time goes", figure=figure))
    return charts


def scoreboard_summary(scoreboard: Node) -> str:
    rows = scoreboard.child("rows").elements()
    inside = sum(
        row.child("low").number() <= row.child("measured").number() <= row.child("high").number()
        for row in rows
    )
    return f"{inside} of {len(rows)} measured points inside their predicted interval"


def sections_of_scoreboard(scoreboard: Node) -> list[Section]:
    """Predicted beside measured, one chart a quantity and source of measurements."""
    rows = scoreboard.child("rows").elements()
    blocks: list[Block] = []
    groups: dict[tuple[str, str], list[figures.PredictedPoint]] = {}
    for row in rows:
        source = str(row.child("source").cell() or "predicted and measured")
        groups.setdefault((row.child("quantity").text(), source), []).append(_prediction(row))
    for (quantity, source), points in groups.items():
        figure = figures.predicted_and_measured(points, x_title=quantity)
        blocks.append(Chart(title=f"{quantity}: {source}", figure=figure))
    blocks.append(Table(caption="Every point", rows=[_score_cells(row) for row in rows]))
    return [Section(title="Scoreboard", blocks=blocks)]


def _prediction(row: Node) -> figures.PredictedPoint:
    return figures.PredictedPoint(
        name=row.child("name").text(),
        predicted=row.child("predicted").number(),
        low=row.child("low").number(),
        high=row.child("high").number(),
        measured=row.child("measured").number(),
    )


def _score_cells(row: Node) -> dict[str, Cell]:
    point = _prediction(row)
    measured = point.measured
    error = 100 * (point.predicted / measured - 1) if measured else None
    return {
        **({"source": row.child("source").cell()} if "source" in row else {}),
        "case": point.name,
        "quantity": row.child("quantity").text(),
        "predicted": round(point.predicted, 3),
        "low": round(point.low, 3),
        "high": round(point.high, 3),
        "measured": measured,
        "error (%)": None if error is None else round(error, 1),
    }
