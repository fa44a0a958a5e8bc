"""``weft plan`` (``weft.plan/1``)."""

from __future__ import annotations

from collections.abc import Iterator

from weft.report import figures
from weft.report.blocks import (
    Answer,
    Block,
    Cell,
    Chart,
    Facts,
    Headline,
    Row,
    Section,
    Table,
    verdict_badge,
)
from weft.report.drawing import Point
from weft.report.node import Node
from weft.report.prediction_section import estimate_text, estimate_value, headline
from weft.report.rows import layout_name
from weft.report.text import number


def title(plan: Node) -> str:
    return f"Plan for {plan['model'].text()}"


def answer(plan: Node) -> Answer:
    """The best layout with what it gives, or that none will do."""
    plans, rejected = plan["plans"].elements(), plan["rejected"].elements()
    counts = f"{len(plans):,} layouts ranked, {len(rejected):,} rejected"
    if not plans:
        return Answer(
            summary=f"no layout fits; {counts}",
            verdict=verdict_badge("failed"),
            warnings=["No layout fits; the reasons are below."],
        )
    best = plans[0]
    note = f"{number(round(estimate_value(best['throughput_per_gpu']), 1))} tokens/s per GPU"
    return Answer(
        summary=f"best: {_name(best)} at {estimate_text(best['tpot_ms'], 'ms')} TPOT; {counts}",
        headlines=[
            Headline(label="best layout", value=_layout(best), note=note),
            headline("TTFT", best["ttft_ms"], "ms"),
            headline("TPOT", best["tpot_ms"], "ms"),
            *_memory(best),
        ],
    )


def _memory(best: Node) -> Iterator[Headline]:
    gib = best["memory_gib"].optional_number()
    if gib is not None:
        yield Headline(label="memory of one GPU", value=f"{number(round(gib, 1))} GiB")


def sections(plan: Node) -> list[Section]:
    """The ranked layouts (best first), where their time goes, and why the others cannot run."""
    plans, rejected = plan["plans"].elements(), plan["rejected"].elements()
    blocks: list[Block] = []
    if plans:
        blocks.append(Table(caption="Layouts, best first", rows=[_cells(node) for node in plans]))
        blocks += _charts(plans, plan["pareto"].elements())
    commands = plan["commands"].cells()
    blocks += [Facts(items=commands)] if commands else []
    found = [Section(title="Plan", blocks=[*blocks, Facts(items=_facts(plan))])]
    if rejected:
        rows = [{"layout": _layout(node), **node.cells("reason")} for node in rejected]
        table = Table(caption="Layouts that cannot run", rows=rows, folded=bool(plans))
        found.append(Section(title="Rejected", blocks=[table]))
    return found


def _facts(plan: Node) -> Row:
    question = plan.cells("model", "objective") if "objective" in plan else plan.cells("model")
    return question | plan["machine"].cells() | plan["workload"].cells()


def _layout(node: Node) -> str:
    return layout_name(node["layout"])


def _name(node: Node) -> str:
    name = _layout(node)
    return f"{name}, batch {node['batch'].integer():,}" if "batch" in node else name


def _cells(node: Node) -> dict[str, Cell]:
    return {
        "layout": _layout(node),
        **node.cells("batch"),
        "TTFT": estimate_text(node["ttft_ms"], "ms"),
        "TPOT": estimate_text(node["tpot_ms"], "ms"),
        "tokens/s per GPU": estimate_value(node["throughput_per_gpu"]),
        **node.cells("memory_gib", "note"),
    }


def _charts(plans: list[Node], front: list[Node]) -> Iterator[Block]:
    """The front is a list of its own, or the plans that say they are on it."""
    batches = {node["batch"].cell() for node in [*plans, *front]}
    name = _name if len(batches) > 1 else _layout
    front = front or [node for node in plans if node["on_front"].value is True]
    on_front = {name(node): _point(node) for node in front}
    others = {name(node): _point(node) for node in plans if name(node) not in on_front}
    yield Chart(
        title="Throughput against latency",
        figure=figures.pareto_front(on_front, others),
        note="No layout and batch beats a point of the front in both.",
    )
    parts = {
        name(node): node["breakdown_us"].numbers() for node in plans[:12] if "breakdown_us" in node
    }
    if parts:
        figure = figures.stacked_bars(parts, x_title="time of one decode step (µs)")
        yield Chart(title="Where a decode step's time goes", figure=figure)


def _point(node: Node) -> Point:
    return Point(estimate_value(node["tpot_ms"]), estimate_value(node["throughput_per_gpu"]))
