"""``weft study`` (``weft.study/1``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from weft.report.blocks import (
    Answer,
    Block,
    Cell,
    Chart,
    Facts,
    Headline,
    Prose,
    Section,
    Table,
    verdict_badge,
)
from weft.report.node import Node
from weft.report.rows import (
    comparison_cells,
    layout_name,
    message_counts,
    num_equal,
    operation_volumes,
)
from weft.report.schedule_section import message_chart, timeline_chart, volume_section
from weft.report.text import decimal_bytes, number

_SOURCES = ("run", "dry_run", "closed_form")


def title(_: Node) -> str:
    return "Study of layouts"


def answer(study: Node) -> Answer:
    """Whether measurement and forms agree, and which layout is fastest and sends least."""
    passed, total = (study["checks"][key].integer() for key in ("passed", "total"))
    layouts = study["layouts"].elements()
    odd = [
        _name(node)
        for node in layouts
        if num_equal(node["rows"].elements()) < len(node["rows"].elements())
    ]
    return Answer(
        summary=f"{passed:,} of {total:,} checks passed",
        verdict=verdict_badge("passed" if passed == total else "failed"),
        headlines=[
            Headline(
                label="checks passed",
                value=f"{passed:,} of {total:,}",
                tone="good" if passed == total else "bad",
                note="measured, dry run and closed form against each other",
            ),
            *_best(layouts),
        ],
        warnings=[f"{name}: rows differ between the sources" for name in odd],
    )


def _best(layouts: list[Node]) -> Iterator[Headline]:
    for key, label in (("ttft_ms", "soonest first token"), ("tpot_ms", "fastest decode")):
        times = {_name(node): node[key].optional_number() for node in layouts}
        if known := {name: time for name, time in times.items() if time is not None}:
            best = min(known, key=lambda name: known[name])
            yield Headline(label=label, value=best, note=f"{number(round(known[best], 2))} ms")
    if sending := {
        _name(node): sum(volumes.values()) for node in layouts if (volumes := _volumes(node))
    }:
        least = min(sending, key=lambda name: sending[name])
        yield Headline(label="sends least", value=least, note=decimal_bytes(sending[least]))


def sections(study: Node) -> list[Section]:
    """Layouts side by side, volumes, timelines, every row folded, and the machine."""
    layouts = study["layouts"].elements()
    found = [_overview(study, layouts)]
    schedules = {_name(node): _schedule(node) for node in layouts if _volumes(node)}
    sending = {name: schedule for name, schedule in schedules.items() if schedule is not None}
    if sending:
        volumes = volume_section(sending)
        found.append(Section(title=volumes.title, blocks=[*volumes.blocks, *_messages(sending)]))
    if times := list(_timelines(layouts)):
        found.append(Section(title="One step", blocks=times))
    rows: list[Block] = [Prose(text="Measured, dry run and closed form side by side.")]
    rows += [_rows(_name(node), node) for node in layouts if node["rows"].elements()]
    found.append(Section(title="Every collective", blocks=rows))
    if published := study["published"].elements():
        found.append(_published_section(published))
    if machine := study["machine"].cells():
        found.append(Section(title="Machine", blocks=[Facts(items=machine)]))
    return found


def _name(node: Node) -> str:
    return layout_name(node["layout"])


def _overview(study: Node, layouts: list[Node]) -> Section:
    subject = {key: study[key].cell() for key in ("model", "engine") if key in study}
    blocks: list[Block] = [
        Table(
            caption="Layouts",
            rows=[_overview_row(node) for node in layouts],
            note="TTFT: time to first token; TPOT: time per output token; E2E: the whole request.",
        ),
        Facts(items=subject | study["workload"].cells()),
    ]
    return Section(title="Overview", blocks=blocks)


def _overview_row(node: Node) -> dict[str, Cell]:
    rows = node["rows"].elements()
    equal = num_equal(rows)
    times = {key: node[f"{key.lower()}_ms"].optional_number() for key in ("TTFT", "TPOT", "E2E")}
    return {
        "layout": _name(node),
        **{f"{key}_ms": None if time is None else round(time, 2) for key, time in times.items()},
        "volume": decimal_bytes(sum(_volumes(node).values())),
        "rows equal": f"{equal} of {len(rows)}" if rows else None,
        "verdict": verdict_badge("equal" if equal == len(rows) else "different"),
    }


def _schedule(node: Node) -> Node | None:
    schedules = node["schedules"]
    return next((schedules[source] for source in _SOURCES if source in schedules), None)


def _volumes(node: Node) -> dict[str, float]:
    schedule = _schedule(node)
    return {} if schedule is None else operation_volumes(schedule)


def _messages(schedules: dict[str, Node]) -> Iterator[Chart]:
    """A chart a set of messages; layouts with equal ones share it."""
    names: dict[str, list[str]] = defaultdict(list)
    charts = {}
    for name, schedule in schedules.items():
        counts = message_counts(schedule)
        names[repr(counts)].append(name)
        charts[repr(counts)] = counts
    for key, counts in charts.items():
        yield message_chart(counts, f"Message sizes, {', '.join(names[key])}")


def _timelines(layouts: list[Node]) -> Iterator[Chart]:
    for node in layouts:
        if events := node["timeline"].elements():
            yield timeline_chart(events, f"Timeline of one step, {_name(node)}")


def _rows(caption: str, node: Node) -> Table:
    rows = node["rows"].elements()
    return Table(
        caption=caption, rows=comparison_cells(node["rows"]), folded=num_equal(rows) == len(rows)
    )


def _published_section(published: list[Node]) -> Section:
    tables = [_rows(f"{node['model'].text()} · {_name(node)}", node) for node in published]
    text = "The published tables of the true model sizes, beside the dry run and the closed form."
    return Section(title="Published tables", blocks=[Prose(text=text), *tables])
