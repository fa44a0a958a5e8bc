"""Sections from a schedule document (``weft.schedule/1``), measured or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from weft.report import figures
from weft.report.blocks import (
    Badge,
    Block,
    Cell,
    Chart,
    Facts,
    Prose,
    Section,
    Table,
    verdict_badge,
)
from weft.report.node import Node
from weft.report.rows import (
    comparison_cells,
    decode_growth,
    layout_name,
    message_counts,
    object_cells,
    operation_volumes,
    schedule_cells,
)
from weft.report.text import decimal_bytes
from weft.vocabulary.schedule import Schedule

_SOURCES: Final = {
    "closed-form": "in closed form",
    "dry-run": "from a dry run",
    "run": "from a real run",
    "import": "from imported traces",
}


def schedule_sections(schedule: Schedule) -> list[Section]:
    """Sections of a schedule in memory."""
    return sections_of_schedule(Node(schedule.to_dict(), "schedule"))


def schedule_title(schedule: Node) -> str:
    model = schedule.child("model").child("name").text()
    return f"{model} · {layout_name(schedule.child('layout'))} · {schedule.child('engine').text()}"


def schedule_summary(schedule: Node) -> str:
    """One line: what was sent, for how many tokens, and where the rows come from."""
    workload, source = schedule.child("workload"), schedule.child("source").text()
    parts = [f"{_volume(schedule)} {_SOURCES.get(source, source)}"]
    for key, name in (
        ("prompt_tokens", "prompt tokens"),
        ("decode_tokens", "decode tokens"),
        ("batch", "in the batch"),
    ):
        if key in workload:
            parts.append(f"{workload.child(key).integer():,} {name}")
    return ", ".join(parts)


def schedule_verdict(schedule: Node) -> Badge | None:
    """Whether an imported schedule conforms to its engine's, or why that cannot be said."""
    if "conformance" not in schedule:
        return None
    conformance = schedule.child("conformance")
    conforms = conformance.child("conforms").value
    if conforms is None:
        known = "verdict" in conformance
        return Badge(text=conformance.child("verdict").text()) if known else None
    if conforms is True:
        return Badge(text="conforms", tone="good")
    return Badge(text="does not conform", tone="bad")


def sections_of_schedule(schedule: Node) -> list[Section]:
    """The verdict and what differs where there is one, then volume, times and every row."""
    sections = []
    if "conformance" in schedule:
        sections.append(_conformance(schedule.child("conformance")))
    if "against" in schedule:
        sections.append(_against(schedule.child("against")))
    blocks: list[Block] = [Facts(items=_facts(schedule)), *_volume_charts(schedule)]
    sections.append(Section(title="Volume", blocks=blocks))
    times = [*_time_charts(schedule)]
    if times:
        sections.append(Section(title="Times", blocks=times))
    rows = Table(caption="Collectives of one rank of each stage", rows=schedule_cells(schedule))
    sections.append(Section(title="Every collective", blocks=[rows]))
    details = _import_details(schedule)
    if details:
        sections.append(Section(title="Beside the schedule", blocks=details))
    return sections


def compared_schedules(schedules: Sequence[Node]) -> Section:
    """Volumes of several schedules beside each other."""
    return volume_section({schedule_title(schedule): schedule for schedule in schedules})


def volume_section(schedules: Mapping[str, Node]) -> Section:
    """Volume by name and operation, and against the decode length."""
    volumes = {name: operation_volumes(schedule) for name, schedule in schedules.items()}
    growth = {name: decode_growth(schedule) for name, schedule in schedules.items()}
    return Section(
        title="Volume compared",
        blocks=[
            Chart(
                title="Volume by layout and operation",
                figure=figures.volume_by_layout(volumes),
                note="Bytes that cross a rank's links, with each operation's correction factor.",
            ),
            Chart(
                title="Volume against decode length",
                figure=figures.volume_by_decode_length(growth),
                note="The same prompt: prefill is paid once, each decode step adds the same volume.",
            ),
        ],
    )


def _facts(schedule: Node) -> dict[str, Any]:
    workload = {
        key: node.cell()
        for key, node in schedule.child("workload").items()
        if node.value is not None
    }
    return {
        "model": schedule.child("model").child("name").text(),
        "layout": layout_name(schedule.child("layout")),
        "engine": schedule.child("engine").text(),
        "source": schedule.child("source").text(),
        **workload,
        "volume": _volume(schedule),
    }


def _volume(schedule: Node) -> str:
    total = schedule.child("totals").child("volume_bytes").optional_number()
    return "unknown volume" if total is None else decimal_bytes(total)


def _volume_charts(schedule: Node) -> list[Block]:
    volumes = operation_volumes(schedule)
    if not volumes:
        return [Prose(text="This layout sends nothing between ranks.")]
    phases = phase_volumes(schedule)
    return [
        Chart(
            title="Volume by phase and operation",
            figure=figures.volume_by_layout(phases),
            note="Sum over the rows of the table; a receive is the other end of a send and is not counted.",
        ),
        message_chart(schedule),
    ]


def phase_volumes(schedule: Node) -> dict[str, dict[str, float]]:
    """Bytes by phase and operation, of the rows that the totals count."""
    volumes: dict[str, dict[str, float]] = {}
    rows = schedule.child("collectives").elements()
    stages: dict[str, list[int]] = {}
    for row in rows:
        stages.setdefault(row.child("op").text(), []).append(row.child("stage").integer())
    for row in rows:
        op, size = row.child("op").text(), row.child("volume_bytes").optional_number()
        if size is not None and _counts(op, row.child("stage").integer(), stages[op]):
            phase = volumes.setdefault(row.child("phase").text(), {})
            phase[op] = phase.get(op, 0.0) + size
    return volumes


def _counts(op: str, stage: int, stages: Sequence[int]) -> bool:
    if op == "all_reduce":
        return stage == min(stages)
    if op in ("gather", "broadcast"):
        return stage == max(stages)
    return op != "recv"


def message_chart(schedule: Node) -> Chart:
    return Chart(
        title="Message sizes",
        figure=figures.message_sizes(message_counts(schedule)),
        note="Calls of one rank of each stage, in bins of powers of two; both axes are logarithmic.",
    )


def _conformance(conformance: Node) -> Section:
    rows = comparison_cells(conformance.child("rows"))
    equal = sum(row["verdict"] == verdict_badge("equal") for row in rows)
    engine = conformance.child("engine").text()
    blocks: list[Block] = [
        Prose(text=f"{equal} of {len(rows)} rows are equal to the schedule of {engine}.")
    ]
    if "explanation" in conformance:
        blocks.append(Prose(text=conformance.child("explanation").text()))
    blocks += [Prose(text=node.text()) for node in conformance.child("differences").elements()]
    if "deviations" in conformance and conformance.child("deviations").elements():
        blocks.append(_deviations(conformance.child("deviations").elements()))
    blocks.append(Table(caption="Expected and actual calls", rows=rows))
    return Section(title="Conformance", blocks=blocks)


def _against(against: Node) -> Section:
    rows: list[dict[str, Cell]] = [
        {
            "": "changed" if node.child("changed").value else "as before",
            "call": node.child("text").text(),
        }
        for node in against.child("rows").elements()
    ]
    caption = f"{against.child('changed').integer()} of {len(rows)} kinds of call changed"
    return Section(title="Against the other run", blocks=[Table(caption=caption, rows=rows)])


_MOST_DEVIATIONS: Final = 30
_DEVIATION_FIELDS: Final = ("kind", "rank", "step", "phase", "layer", "part", "op", "time_us")


def _deviations(elements: Sequence[Node]) -> Table:
    rows = [
        {name: node.child(name).cell() for name in _DEVIATION_FIELDS}
        for node in elements[:_MOST_DEVIATIONS]
    ]
    return Table(
        caption=f"Where it differs: the first {len(rows)} of {len(elements)} calls",
        rows=rows,
        note="Steps count those with requests; times are on the clock of the rank's own trace.",
    )


def _time_charts(schedule: Node) -> list[Block]:
    builders = {
        "time_share": time_share_chart,
        "waiting": _waiting_chart,
        "timeline": timeline_chart,
    }
    return [
        build(elements)
        for key, build in builders.items()
        if (elements := schedule.child(key).elements())
    ]


def time_share_chart(steps: Sequence[Node]) -> Chart:
    parts = [(step.child("step").text(), step.child("kinds_us").numbers()) for step in steps]
    return Chart(title="Where the time of each step went", figure=figures.time_share(parts))


def _waiting_chart(ranks: Sequence[Node]) -> Chart:
    times = {
        node.child("rank").integer(): {
            "wait": node.child("wait_us").number(),
            "transfer": node.child("transfer_us").number(),
        }
        for node in ranks
    }
    return Chart(
        title="Waiting by rank",
        figure=figures.waiting_by_rank(times),
        note="Waiting lasts until the last rank of the group has arrived; transfer is the rest.",
    )


def timeline_chart(events: Sequence[Node]) -> Chart:
    chosen = [
        figures.TimelineEvent(
            rank=node.child("rank").integer(),
            name=node.child("name").text(),
            kind=node.child("kind").text(),
            start_us=node.child("start_us").number(),
            end_us=node.child("end_us").number(),
        )
        for node in events
    ]
    return Chart(title="Timeline of one step", figure=figures.step_timeline(chosen))


_IMPORT_LISTS: Final = {
    "unexplained": "Unexplained: no rule of the engine's schedule has these calls",
    "control": "Control: calls that carry no tensor of the model",
    "replicas": "Replicas: steps, tokens and how long a rank waited for other replicas",
    "steps": "Steps of the engine",
    "ranks": "Ranks",
    "clocks": "Clocks against each other",
}


def _import_details(schedule: Node) -> list[Block]:
    """What only an import has: notes, calls beside the schedule, steps, ranks and clocks."""
    notes: list[Block] = [
        Prose(text=f"Note: {note.text()}") for note in schedule.child("notes").elements()
    ]
    tables = [
        Table(caption=caption, rows=object_cells(schedule.child(key)))
        for key, caption in _IMPORT_LISTS.items()
    ]
    return [*notes, *(table for table in tables if table.rows)]
