"""Sections from ``weft study`` (``weft.study/1``)."""

from __future__ import annotations

from weft.report.blocks import Badge, Block, Cell, Facts, Prose, Section, Table, verdict_badge
from weft.report.node import Node
from weft.report.rows import comparison_cells, layout_name, operation_volumes
from weft.report.schedule_section import message_chart, timeline_chart, volume_section
from weft.report.text import decimal_bytes, number

_SOURCES = ("run", "dry_run", "closed_form")


def study_summary(study: Node) -> str:
    checks = study.child("checks")
    passed, total = checks.child("passed").integer(), checks.child("total").integer()
    return f"{passed:,} of {total:,} checks passed"


def study_verdict(study: Node) -> Badge:
    checks = study.child("checks")
    passed = checks.child("passed").integer() == checks.child("total").integer()
    return Badge(text="passed" if passed else "failed", tone="good" if passed else "bad")


def sections_of_study(study: Node) -> list[Section]:
    """Overview, volumes, one section a layout, the published tables and the machine."""
    layouts = study.child("layouts").elements()
    sections = [_overview(study, layouts)]
    communicating = [node for node in layouts if _volumes(node)]
    if communicating:
        sections.append(_volume_section(communicating))
    sections += [_layout_section(node) for node in layouts]
    published = study.child("published").elements()
    if published:
        sections.append(_published_section(published))
    machine = {key: node.cell() for key, node in study.child("machine").items()}
    if machine:
        sections.append(Section(title="Machine", blocks=[Facts(items=machine)]))
    return sections


def _name(node: Node) -> str:
    return layout_name(node.child("layout"))


def _overview(study: Node, layouts: list[Node]) -> Section:
    workload = {key: node.cell() for key, node in study.child("workload").items()}
    rows = [_overview_row(node) for node in layouts]
    blocks: list[Block] = [
        Facts(items=_subject(study) | workload),
        Table(
            caption="Layouts",
            rows=rows,
            note="TTFT: time to first token; TPOT: time per output token; E2E: the whole request.",
        ),
    ]
    return Section(title="Overview", blocks=blocks)


def _subject(study: Node) -> dict[str, Cell]:
    return {key: study.child(key).text() for key in ("model", "engine") if key in study}


def _overview_row(node: Node) -> dict[str, Cell]:
    rows = comparison_cells(node.child("rows"))
    equal = sum(row["verdict"] == verdict_badge("equal") for row in rows)
    verdict = "equal" if equal == len(rows) else "different"
    return {
        "layout": _name(node),
        "TTFT_ms": _time(node, "ttft_ms"),
        "TPOT_ms": _time(node, "tpot_ms"),
        "E2E_ms": _time(node, "e2e_ms"),
        "volume": decimal_bytes(sum(_volumes(node).values())),
        "rows equal": f"{equal} of {len(rows)}" if rows else None,
        "verdict": verdict_badge(verdict),
    }


def _time(node: Node, key: str) -> float | None:
    value = node.child(key).optional_number()
    return None if value is None else round(value, 2)


def _schedule(node: Node) -> Node | None:
    schedules = node.child("schedules")
    return next((schedules.child(source) for source in _SOURCES if source in schedules), None)


def _volumes(node: Node) -> dict[str, float]:
    schedule = _schedule(node)
    return {} if schedule is None else operation_volumes(schedule)


def _volume_section(layouts: list[Node]) -> Section:
    schedules = {
        _name(node): schedule for node in layouts if (schedule := _schedule(node)) is not None
    }
    return volume_section(schedules)


def _layout_section(node: Node) -> Section:
    schedule = _schedule(node)
    rows = comparison_cells(node.child("rows"))
    blocks: list[Block] = [Facts(items=_times(node))]
    if rows:
        caption = "Collectives: measured, dry run and closed form side by side"
        blocks.append(Table(caption=caption, rows=rows))
    else:
        blocks.append(Prose(text="One rank sends nothing."))
    if schedule is not None and _volumes(node):
        blocks.append(message_chart(schedule))
    if "timeline" in node:
        blocks.append(timeline_chart(node.child("timeline").elements()))
    return Section(title=f"Layout {_name(node)}", blocks=blocks)


def _times(node: Node) -> dict[str, Cell]:
    names = {"TTFT": "ttft_ms", "TPOT": "tpot_ms", "E2E": "e2e_ms"}
    times = {name: _time(node, key) for name, key in names.items()}
    return {name: None if time is None else f"{number(time)} ms" for name, time in times.items()}


def _published_section(published: list[Node]) -> Section:
    tables: list[Block] = [
        Table(
            caption=f"{node.child('model').text()} · {layout_name(node.child('layout'))}",
            rows=comparison_cells(node.child("rows")),
        )
        for node in published
    ]
    text = "The published tables of the true model sizes, beside the dry run and the closed form."
    return Section(title="Published tables", blocks=[Prose(text=text), *tables])
