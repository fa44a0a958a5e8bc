"""Sections from ``weft study engines`` (``weft.study.engines/1``): the answer, then the evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from weft.report.blocks import (
    Answer,
    Badge,
    Block,
    Cell,
    Chart,
    Headline,
    Prose,
    Section,
    Table,
)
from weft.report.engines_document import CaseRecord, Study, read_study
from weft.report.engines_figures import METRICS, paper_figures
from weft.report.engines_findings import answers, findings, tokens
from weft.report.node import Node
from weft.report.prediction_section import estimate_value
from weft.report.text import number


def title(study: Node) -> str:
    return f"Engines compared: {study['model'].text()}"


def answer(node: Node) -> Answer:
    """Which engine and layout to take, workload by workload; what failed comes first."""
    study = read_study(node)
    odd = [c.place for c in study.cases if c.trace and c.trace.conforms is False]
    failed = [
        f"{c.place}, {c.workload}: {c.reason or c.status}"
        for c in study.cases
        if c.status != "done"
    ]
    bad = Badge(text=f"{len(failed)} cases failed, {len(odd)} do not conform", tone="bad")
    good = Badge(text=f"{len(study.cases)} cases", tone="good")
    return Answer(
        summary=" ".join(answers(study)),
        verdict=bad if failed or odd else good,
        headlines=list(_best(study))[:4],
        warnings=[*failed, *(f"{place} does not conform to its schedule" for place in odd)],
    )


def _best(study: Study) -> Iterator[Headline]:
    for workload in study.workloads:
        cases = [case for case in study.done if case.workload == workload]
        for metric, name in METRICS.items():
            times = [(t, c) for c in cases if c.alone and (t := c.alone.median(metric)) is not None]
            if times and metric != "e2e_ms":
                best, case = min(times, key=lambda pair: pair[0])
                value = f"{number(round(best, 2))} ms"
                yield Headline(label=f"lowest {name}, {workload}", value=value, note=case.place)
        if busy := max(cases, key=tokens, default=None):
            value = f"{number(round(tokens(busy), 1))} tokens/s"
            yield Headline(label=f"most tokens, {workload}", value=value, note=busy.place)


def sections(node: Node) -> list[Section]:
    """Cases, what the papers found, their figures, the all-reduces, one after the other."""
    study = read_study(node)
    found = [_cases(study)]
    if rows := findings(study):
        note = "Xu et al. and Singhania et al.; each line says what was seen here."
        table = Table(
            caption="What the papers found", rows=[_finding(row) for row in rows], note=note
        )
        found.append(Section(title="The papers' findings", blocks=[table]))
    if reduced := _all_reduces(study):
        table = Table(caption="TPOT of a request alone", rows=reduced)
        found.append(Section(title="weft's all-reduce beside the library's", blocks=[table]))
    drawn: dict[str, list[Chart]] = defaultdict(list)
    for one in paper_figures(study):
        workload = next(name for name in study.workloads if one.name.startswith(f"{name}-"))
        charts = drawn[workload]
        same = next((n for n, chart in enumerate(charts) if chart.figure == one.figure), None)
        if same is None:
            charts.append(Chart(title=one.title, figure=one.figure, note=one.note))
        else:
            charts[same] = replace(charts[same], title=f"{charts[same].title}; {one.title}")
    return found + [Section(title=name, blocks=charts) for name, charts in drawn.items()]


def _cases(study: Study) -> Section:
    rows = [_row(case) for case in study.cases]
    note = (
        "Medians of the load with the fewest open requests; tokens/s of the busiest. A trace "
        "conforms where every call is in the engine's schedule for its model and layout."
    )
    blocks: list[Block] = [Table(caption="Every case", rows=rows, note=note)]
    notes = {case.engine: case.note for case in study.cases if case.note}
    blocks += [Prose(text=f"{engine}: {text}.") for engine, text in notes.items()]
    return Section(title="Cases", blocks=blocks)


def _row(case: CaseRecord) -> dict[str, Cell]:
    tone = {"done": "good", "failed": "bad"}.get(case.status, "neutral")
    cells: dict[str, Cell] = {
        "engine": case.engine,
        "layout": case.layout,
        "workload": case.workload,
        "status": Badge(text=case.status, tone=tone),  # type: ignore[arg-type]
    }
    for metric in ("ttft", "tpot", "e2e"):
        key = f"{metric}_ms"
        value = case.alone.median(key) if case.alone else None
        cells[key] = None if value is None else round(value, 3)
        predicted = (case.predicted or {}).get(key)
        told = None if predicted is None else estimate_value(Node(predicted, f"predicted {key}"))
        cells[f"{metric}_predicted_ms"] = None if told is None else round(told, 3)
    load, decode = case.busiest, case.trace.decode if case.trace else None
    cells["tokens/s"] = load.result.throughput.output_tokens_per_s if load else None
    cells["in collectives"] = (
        f"{decode.share('communication', 'waiting'):.0%} of decode" if decode else None
    )
    cells["trace"] = _verdict(case)
    cells["reason"] = case.reason or (case.trace.failed if case.trace else None)
    return cells


def _verdict(case: CaseRecord) -> Cell:
    if case.trace is None or case.trace.verdict is None:
        return None
    if case.trace.conforms is None:
        return Badge(text=case.trace.verdict)
    return Badge(text=case.trace.verdict, tone="good" if case.trace.conforms else "bad")


def _finding(row: dict[str, str]) -> dict[str, Cell]:
    confirmed = row["here"] == "confirmed"
    return {**row, "here": Badge(text=row["here"], tone="good" if confirmed else "neutral")}


def _all_reduces(study: Study) -> list[dict[str, Cell]]:
    """The same engine with the one and the other, where both ran."""
    done = {(case.engine, case.layout, case.workload): case for case in study.done}
    rows: list[dict[str, Cell]] = []
    for ours, library in (("weft", "weft-library"), ("vllm-weft", "vllm")):
        for (engine, layout, workload), case in done.items():
            other = done.get((library, layout, workload))
            if engine != ours or other is None or "tp" not in layout:
                continue
            times = [one.alone.median("tpot_ms") if one.alone else None for one in (case, other)]
            if times[0] and times[1]:
                rows.append(
                    {
                        "engines": f"{ours} beside {library}",
                        "layout": layout,
                        "workload": workload,
                        "weft_ms": round(times[0], 3),
                        "library_ms": round(times[1], 3),
                        "ratio": round(times[0] / times[1], 3),
                    }
                )
    return rows
