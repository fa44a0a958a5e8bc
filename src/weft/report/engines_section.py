"""Sections from ``weft study engines`` (``weft.study.engines/1``): the answer, then the evidence."""

from __future__ import annotations

from weft.report.blocks import Badge, Block, Cell, Chart, Prose, Section, Table
from weft.report.engines_document import CaseRecord, Study, read_study
from weft.report.engines_figures import paper_figures
from weft.report.engines_findings import answers, findings
from weft.report.node import Node
from weft.report.prediction_section import estimate_value


def engines_summary(node: Node) -> str:
    return " ".join(answers(read_study(node)))


def engines_verdict(node: Node) -> Badge:
    study = read_study(node)
    failed = sum(case.status != "done" for case in study.cases)
    odd = sum(bool(case.trace and case.trace.conforms is False) for case in study.cases)
    if failed or odd:
        return Badge(text=f"{failed} cases failed, {odd} do not conform", tone="bad")
    return Badge(text=f"{len(study.cases)} cases", tone="good")


def sections_of_engines(node: Node) -> list[Section]:
    """Cases, what the papers found, their figures, the all-reduces, one after the other."""
    study = read_study(node)
    sections = [_cases(study)]
    if rows := findings(study):
        note = "Xu et al. and Singhania et al.; each line says what was seen here."
        table = Table(
            caption="What the papers found", rows=[_finding(row) for row in rows], note=note
        )
        sections.append(Section(title="The papers' findings", blocks=[table]))
    if reduced := _all_reduces(study):
        table = Table(caption="TPOT of a request alone", rows=reduced)
        sections.append(Section(title="weft's all-reduce beside the library's", blocks=[table]))
    drawn: dict[str, list[Block]] = {}
    for one in paper_figures(study):
        workload = next(name for name in study.workloads if one.name.startswith(f"{name}-"))
        chart = Chart(title=one.title, figure=one.figure, note=one.note)
        drawn.setdefault(workload, []).append(chart)
    return sections + [Section(title=name, blocks=blocks) for name, blocks in drawn.items()]


def _cases(study: Study) -> Section:
    rows = [_row(case) for case in study.cases]
    note = (
        "Medians of the load with the fewest open requests; tokens/s of the busiest. A trace "
        "conforms where every call is in the engine's schedule for its model and layout."
    )
    blocks: list[Block] = [Prose(text=text) for text in answers(study)]
    blocks.append(Table(caption="Every case", rows=rows, note=note))
    notes = {case.engine: case.note for case in study.cases if case.note}
    blocks += [Prose(text=f"{engine}: {text}.") for engine, text in notes.items()]
    return Section(title="The answer", blocks=blocks)


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
