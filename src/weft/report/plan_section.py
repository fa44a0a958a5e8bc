"""Sections from ``weft plan`` (``weft.plan/1``) and its scoreboard (``weft.scoreboard/1``)."""

from __future__ import annotations

from weft.report import figures
from weft.report.blocks import Block, Cell, Chart, Facts, Prose, Section, Table
from weft.report.node import Node
from weft.report.rows import layout_name
from weft.report.text import number


def plan_summary(plan: Node) -> str:
    plans, rejected = plan.child("plans").elements(), plan.child("rejected").elements()
    counts = f"{len(plans):,} layouts ranked, {len(rejected):,} rejected"
    if not plans:
        return f"no layout fits; {counts}"
    return f"best: {_name(plans[0])} at {_text(plans[0].child('tpot_ms'), 'ms')} TPOT; {counts}"


def sections_of_plan(plan: Node) -> list[Section]:
    """The ranked layouts (best first), where their time goes, and why the others cannot run."""
    plans, rejected = plan.child("plans").elements(), plan.child("rejected").elements()
    blocks: list[Block] = [Facts(items=_facts(plan))]
    if plans:
        blocks.append(Table(caption="Layouts, best first", rows=[_cells(node) for node in plans]))
        blocks += _charts(plans)
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


def _name(node: Node) -> str:
    name = layout_name(node.child("layout"))
    return f"{name}, batch {node.child('batch').integer():,}" if "batch" in node else name


def _cells(node: Node) -> dict[str, Cell]:
    return {
        "layout": layout_name(node.child("layout")),
        "batch": node.child("batch").optional_integer(),
        "TTFT": _text(node.child("ttft_ms"), "ms"),
        "TPOT": _text(node.child("tpot_ms"), "ms"),
        "tokens/s per GPU": _value(node.child("throughput_per_gpu")),
        "memory_gib": node.child("memory_gib").optional_number(),
        "note": node.child("note").cell(),
    }


def _value(quantity: Node) -> float:
    """A number, or the value of ``{"value", "low", "high"}``."""
    node = quantity.child("value") if isinstance(quantity.value, dict) else quantity
    return node.number()


def _text(quantity: Node, unit: str) -> str:
    text = f"{number(round(_value(quantity), 3))} {unit}"
    if isinstance(quantity.value, dict) and "low" in quantity and "high" in quantity:
        low, high = quantity.child("low").number(), quantity.child("high").number()
        return f"{text} ({number(round(low, 3))} to {number(round(high, 3))})"
    return text


def _charts(plans: list[Node]) -> list[Block]:
    points = [
        figures.LayoutPoint(
            name=_name(node),
            tpot_ms=_value(node.child("tpot_ms")),
            throughput_per_gpu=_value(node.child("throughput_per_gpu")),
            on_front=node.child("on_front").value is True,
        )
        for node in plans
    ]
    charts: list[Block] = [
        Chart(title="Throughput against latency", figure=figures.pareto_front(points))
    ]
    parts = {
        _name(node): node.child("breakdown_us").numbers()
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
    """Predicted beside measured, one chart a quantity."""
    rows = scoreboard.child("rows").elements()
    blocks: list[Block] = []
    for quantity in dict.fromkeys(row.child("quantity").text() for row in rows):
        chosen = [row for row in rows if row.child("quantity").text() == quantity]
        points = [_prediction(row) for row in chosen]
        figure = figures.predicted_and_measured(points, x_title=quantity)
        blocks.append(Chart(title=f"{quantity}: predicted and measured", figure=figure))
    blocks.append(Table(caption="Every point", rows=[_score_cells(row) for row in rows]))
    return [Section(title="Scoreboard", blocks=blocks)]


def _prediction(row: Node) -> figures.Prediction:
    return figures.Prediction(
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
        "case": point.name,
        "quantity": row.child("quantity").text(),
        "predicted": round(point.predicted, 3),
        "low": round(point.low, 3),
        "high": round(point.high, 3),
        "measured": measured,
        "error (%)": None if error is None else round(error, 1),
    }
