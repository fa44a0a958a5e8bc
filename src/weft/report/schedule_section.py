"""A schedule document (``weft.schedule/1``), measured or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from weft.report import figures
from weft.report.blocks import (
    Answer,
    Badge,
    Block,
    Chart,
    Facts,
    Folded,
    Headline,
    Prose,
    Row,
    Section,
    Table,
)
from weft.report.node import Node
from weft.report.rows import (
    comparison_cells,
    decode_growth,
    layout_name,
    message_counts,
    num_equal,
    object_cells,
    operation_volumes,
    schedule_cells,
)
from weft.report.text import decimal_bytes, number

_SOURCES: Final = {
    "closed-form": "in closed form",
    "dry-run": "from a dry run",
    "run": "from a real run",
    "import": "from imported traces",
}
_MOST_OPEN: Final = 16
_TONES: Final = {"conforms": "good", "does not conform": "bad"}


def title(schedule: Node) -> str:
    model, engine = schedule["model.name"].text(), schedule["engine"].text()
    return f"{model} · {layout_name(schedule['layout'])} · {engine}"


def answer(schedule: Node) -> Answer:
    """What was sent for how many tokens; of traces, whether they conform and what they waited."""
    conformance = schedule["conformance"]
    verdict = _verdict(conformance) if conformance.value is not None else None
    reason = conformance["explanation"].text() if verdict and "explanation" in conformance else ""
    failed = verdict is not None and verdict.tone == "bad"
    partial = [node.text() for node in schedule["notes"].elements()]
    return Answer(
        summary=(f"{reason}; " if reason and not failed else "") + _request(schedule),
        verdict=verdict,
        headlines=[*_traced(schedule, verdict), *_sent(schedule)][:4],
        warnings=[reason] * failed + [text for text in partial if text.startswith("partial:")],
    )


def _verdict(conformance: Node) -> Badge | None:
    """Whether an imported schedule conforms to its engine's, or why that cannot be said."""
    if (conforms := conformance["conforms"].value) is None:
        told = conformance["verdict"].text() if "verdict" in conformance else ""
    else:
        told = "conforms" if conforms is True else "does not conform"
    return Badge(text=told, tone=_TONES.get(told, "neutral")) if told else None  # type: ignore[arg-type]


def _request(schedule: Node) -> str:
    workload, source = schedule["workload"], schedule["source"].text()
    parts = [f"{_volume(schedule)} {_SOURCES.get(source, source)}"]
    for key, name in (
        ("prompt_tokens", "prompt tokens"),
        ("decode_tokens", "decode tokens"),
        ("batch", "in the batch"),
    ):
        if key in workload:
            parts.append(f"{workload[key].integer():,} {name}")
    return ", ".join(parts)


def _traced(schedule: Node, verdict: Badge | None) -> Iterator[Headline]:
    """What only traces tell: rows as expected, and a step's communication and waiting."""
    if rows := schedule["conformance.rows"].elements() if verdict else []:
        label, value = "rows as expected", f"{num_equal(rows)} of {len(rows)}"
        yield Headline(label=label, value=value, tone=verdict.tone if verdict else "neutral")
    gains = {gain["phase"].text(): gain for gain in schedule["gains"].elements()}
    gain = gains.get("decode") or next(iter(gains.values()), None)
    if gain is None:
        return
    step, phase = gain["step_us"].number(), gain["phase"].text()
    for key, name in (("communication_us", "communication"), ("waiting_us", "waiting for others")):
        part = gain[key].optional_number()
        if part is not None and step:
            of = f"a step takes {number(round(step / 1e3, 3))} ms"
            of = f"{part / step:.0%}: {of}" if part <= step else of
            value = f"{number(round(part / 1e3, 3))} ms"
            yield Headline(label=f"{name}, {phase}", value=value, note=of)


def _sent(schedule: Node) -> Iterator[Headline]:
    volumes, phases = operation_volumes(schedule), schedule["totals.by_phase"].numbers()
    yield Headline(label="volume of the request", value=_volume(schedule))
    workload = schedule["workload"]
    steps = workload["decode_tokens"].integer() - 1 if "decode_tokens" in workload else 0
    if steps > 0 and phases.get("decode"):
        calls = sum(
            row["count"].integer()
            for row in schedule["collectives"].elements()
            if row["phase"].value == "decode" and row["stage"].value in (0, None)
        )
        a_step = decimal_bytes(phases["decode"] / steps)
        yield Headline(label="a decode step sends", value=a_step)
        yield Headline(
            label="calls a decode step",
            value=number(calls / steps),
            note="of one rank of the first stage",
        )
    if total := sum(volumes.values()):
        most = max(volumes, key=lambda op: volumes[op])
        yield Headline(
            label="most of it", value=most, note=f"{volumes[most] / total:.0%} of the bytes"
        )


def sections(schedule: Node) -> list[Section]:
    """What differs where there is a verdict, then times, volume and every row."""
    found = []
    if "conformance" in schedule:
        found.append(_conformance(schedule["conformance"]))
    if "against" in schedule:
        found.append(_against(schedule["against"]))
    if times := list(_time_charts(schedule)):
        found.append(Section(title="Times", blocks=times))
    blocks = [*_volume_charts(schedule), Facts(items=_facts(schedule))]
    found.append(Section(title="Volume", blocks=blocks))
    cells = schedule_cells(schedule)
    caption = "Collectives of one rank of each stage"
    rows = Table(caption=caption, rows=cells, folded=len(cells) > _MOST_OPEN)
    found.append(Section(title="Every collective", blocks=[rows]))
    if details := list(_import_details(schedule)):
        found.append(Section(title="Beside the schedule", blocks=details))
    return found


def compared(schedules: Sequence[Node]) -> Section:
    """Volumes of several schedules beside each other."""
    return volume_section({title(schedule): schedule for schedule in schedules})


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


def _facts(schedule: Node) -> Row:
    workload = schedule["workload"].cells()
    return {
        "model": schedule["model.name"].text(),
        "layout": layout_name(schedule["layout"]),
        **schedule.cells("engine", "source"),
        **{name: value for name, value in workload.items() if value is not None},
    }


def _volume(schedule: Node) -> str:
    total = schedule["totals.volume_bytes"].optional_number()
    return "unknown volume" if total is None else decimal_bytes(total)


def _volume_charts(schedule: Node) -> Iterator[Block]:
    if not operation_volumes(schedule):
        yield Prose(text="This layout sends nothing between ranks.")
        return
    yield Chart(
        title="Volume by phase and operation",
        figure=figures.volume_by_layout(phase_volumes(schedule)),
        note="Sum over the rows of the table; a receive is the other end of a send and is not counted.",
    )
    yield message_chart(message_counts(schedule), "Message sizes")


def phase_volumes(schedule: Node) -> dict[str, dict[str, float]]:
    """Bytes by phase and operation, of the rows that the totals count."""
    volumes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    rows = schedule["collectives"].elements()
    stages: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        stages[row["op"].text()].append(row["stage"].integer())
    for row in rows:
        op, size = row["op"].text(), row["volume_bytes"].optional_number()
        if size is not None and _counts(op, row["stage"].integer(), stages[op]):
            volumes[row["phase"].text()][op] += size
    return volumes


def _counts(op: str, stage: int, stages: Sequence[int]) -> bool:
    if op == "all_reduce":
        return stage == min(stages)
    if op in ("gather", "broadcast"):
        return stage == max(stages)
    return op != "recv"


def message_chart(counts: Mapping[str, Mapping[int, int]], name: str) -> Chart:
    return Chart(
        title=name,
        figure=figures.message_sizes(counts),
        note="Calls of one rank of each stage, in bins of powers of two; calls are logarithmic.",
    )


def _conformance(conformance: Node) -> Section:
    rows = conformance["rows"].elements()
    equal, engine = num_equal(rows), conformance["engine"].text()
    blocks: list[Block] = []
    if differing := conformance["deviations"].elements():
        blocks.append(_deviations(differing))
    blocks.append(Prose(text=f"{equal} of {len(rows)} rows are equal to the schedule of {engine}."))
    blocks += [Prose(text=node.text()) for node in conformance["differences"].elements()]
    cells, is_equal = comparison_cells(conformance["rows"]), equal == len(rows)
    blocks.append(Table(caption="Expected and actual calls", rows=cells, folded=is_equal))
    return Section(title="Conformance", blocks=blocks)


def _against(against: Node) -> Section:
    rows = [
        {"": "changed" if node["changed"].value else "as before", "call": node["text"].text()}
        for node in against["rows"].elements()
    ]
    caption = f"{against['changed'].integer()} of {len(rows)} kinds of call changed"
    return Section(title="Against the other run", blocks=[Table(caption=caption, rows=rows)])


_MOST_DEVIATIONS: Final = 30
_DEVIATION_FIELDS: Final = ("kind", "rank", "step", "phase", "layer", "part", "op", "time_us")


def _deviations(elements: Sequence[Node]) -> Table:
    rows = [node.cells(*_DEVIATION_FIELDS) for node in elements[:_MOST_DEVIATIONS]]
    return Table(
        caption=f"Where it differs: the first {len(rows)} of {len(elements)} calls",
        rows=rows,
        note="Steps count those with requests; times are on the clock of the rank's own trace.",
    )


def _time_charts(schedule: Node) -> Iterator[Block]:
    if events := schedule["timeline"].elements():
        yield timeline_chart(events)
    times = {
        f"rank {node['rank'].integer()}": {
            key: node[f"{key}_us"].number() for key in ("wait", "transfer")
        }
        for node in schedule["waiting"].elements()
    }
    if times:
        yield Chart(
            title="Waiting by rank",
            figure=figures.stacked_bars(times, x_title="time in collectives (µs)"),
            note="Waiting lasts until the last rank of the group has arrived; transfer is the rest.",
        )
    if steps := schedule["time_share"].elements():
        parts = [(step["step"].text(), step["kinds_us"].numbers()) for step in steps]
        yield Chart(title="Where the time of each step went", figure=figures.time_share(parts))


def timeline_chart(events: Sequence[Node], name: str = "Timeline of one step") -> Chart:
    spans = [
        figures.Span(
            node["rank"].integer(),
            node["kind"].text(),
            node["name"].text(),
            node["start_us"].number(),
            node["end_us"].number(),
        )
        for node in events
    ]
    return Chart(title=name, figure=figures.step_timeline(spans))


_IMPORT_LISTS: Final = {
    "unexplained": "Unexplained: no rule of the engine's schedule has these calls",
    "control": "Control: calls that carry no tensor of the model",
    "replicas": "Replicas: steps, tokens and how long a rank waited for other replicas",
    "steps": "Steps of the engine",
    "ranks": "Ranks",
    "clocks": "Clocks against each other",
}


def _import_details(schedule: Node) -> Iterator[Block]:
    """What only an import has: notes, calls beside the schedule, steps, ranks and clocks."""
    for note in schedule["notes"].elements():
        yield Prose(text=f"Note: {note.text()}")
    tables = [
        Table(caption=caption, rows=object_cells(schedule[key]))
        for key, caption in _IMPORT_LISTS.items()
        if schedule[key].elements()
    ]
    first = [table for table in tables if table.caption.startswith(("Unexplained", "Replicas"))]
    yield from first
    if rest := [table for table in tables if table not in first]:
        yield Folded(title="Control calls, steps, ranks and clocks", blocks=rest)
