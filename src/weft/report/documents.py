"""A Report from the JSON documents that weft's commands write, by their ``schema`` field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

from weft.report import (
    bench_section,
    engines_section,
    plan_section,
    prediction_section,
    schedule_section,
    scoreboard_section,
    serving_section,
    study_section,
    sweep_section,
)
from weft.report.blocks import Answer, Prose, Report, Section
from weft.report.node import Node


class _Kind(Protocol):
    """What a module of a document has."""

    def title(self, document: Node, /) -> str: ...
    def answer(self, document: Node, /) -> Answer: ...
    def sections(self, document: Node, /) -> list[Section]: ...


_KINDS: Final[dict[str, _Kind]] = {
    "weft.schedule/1": schedule_section,
    "weft.study/1": study_section,
    "weft.bench.allreduce/1": bench_section,
    "weft.prediction/1": prediction_section,
    "weft.plan/1": plan_section,
    "weft.scoreboard/1": scoreboard_section,
    "weft.bench.serve/1": serving_section,
    "weft.bench.sweep/1": sweep_section,
    "weft.study.engines/1": engines_section,
}


def report_of(documents: Sequence[Node]) -> Report:
    """One report of all documents, in their order.

    Raises FileFormatError for an unknown ``schema`` or a field that is wrong.
    """
    reports = [_single(document) for document in documents]
    if len(reports) == 1:
        return reports[0]
    schedules = [node for node in documents if node["schema"].value == "weft.schedule/1"]
    compared = [schedule_section.compared(schedules)] if len(schedules) > 1 else []
    named = [
        replace(one.answer.headlines[0], note=one.title) for one in reports if one.answer.headlines
    ]
    answer = Answer(
        summary=", ".join(dict.fromkeys(report.title for report in reports)),
        headlines=named[:4],
        warnings=[f"{one.title}: {text}" for one in reports for text in one.answer.warnings],
    )
    titled = [section for report in reports for section in _titled(report)]
    return Report(title="weft report", answer=answer, sections=[*compared, *titled])


def _titled(report: Report) -> list[Section]:
    """The report's sections under its name, its answer first."""
    told = Section(title="answer", blocks=[Prose(text=report.answer.summary)])
    found = [told, *report.sections]
    return [replace(one, title=f"{report.title}: {one.title}") for one in found]


def _single(document: Node) -> Report:
    schema = document["schema"]
    kind = _KINDS.get(schema.value) if isinstance(schema.value, str) else None
    if kind is None:
        raise schema.wrong(f"one of {', '.join(_KINDS)}")
    return Report(
        title=kind.title(document), answer=kind.answer(document), sections=kind.sections(document)
    )
