"""A Report from the JSON documents that weft's commands write, by their ``schema`` field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from weft.report.bench_section import bench_summary, sections_of_bench
from weft.report.blocks import Badge, Report, Section
from weft.report.engines_section import engines_summary, engines_verdict, sections_of_engines
from weft.report.node import Node
from weft.report.plan_section import (
    plan_summary,
    scoreboard_summary,
    sections_of_plan,
    sections_of_scoreboard,
)
from weft.report.prediction_section import (
    prediction_summary,
    prediction_title,
    sections_of_prediction,
)
from weft.report.schedule_section import (
    compared_schedules,
    schedule_summary,
    schedule_title,
    schedule_verdict,
    sections_of_schedule,
)
from weft.report.serving_section import (
    sections_of_serving,
    serving_summary,
    serving_title,
    serving_verdict,
)
from weft.report.study_section import sections_of_study, study_summary, study_verdict
from weft.report.sweep_section import sections_of_sweep, sweep_summary, sweep_verdict


@dataclass(frozen=True, kw_only=True)
class _Kind:
    title: Callable[[Node], str]
    summary: Callable[[Node], str]
    sections: Callable[[Node], list[Section]]
    verdict: Callable[[Node], Badge | None] = lambda _: None


def _plan_title(plan: Node) -> str:
    return f"Plan for {plan.child('model').text()}"


_KINDS: Final = {
    "weft.schedule/1": _Kind(
        title=schedule_title,
        summary=schedule_summary,
        sections=sections_of_schedule,
        verdict=schedule_verdict,
    ),
    "weft.study/1": _Kind(
        title=lambda _: "Study of layouts",
        summary=study_summary,
        sections=sections_of_study,
        verdict=study_verdict,
    ),
    "weft.bench.allreduce/1": _Kind(
        title=lambda _: "All-reduce benchmark", summary=bench_summary, sections=sections_of_bench
    ),
    "weft.prediction/1": _Kind(
        title=prediction_title, summary=prediction_summary, sections=sections_of_prediction
    ),
    "weft.plan/1": _Kind(title=_plan_title, summary=plan_summary, sections=sections_of_plan),
    "weft.scoreboard/1": _Kind(
        title=lambda _: "Predicted and measured",
        summary=scoreboard_summary,
        sections=sections_of_scoreboard,
    ),
    "weft.bench.serve/1": _Kind(
        title=serving_title,
        summary=serving_summary,
        sections=sections_of_serving,
        verdict=serving_verdict,
    ),
    "weft.bench.sweep/1": _Kind(
        title=lambda _: "Load against service levels",
        summary=sweep_summary,
        sections=sections_of_sweep,
        verdict=sweep_verdict,
    ),
    "weft.study.engines/1": _Kind(
        title=lambda study: f"Engines compared: {study.child('model').text()}",
        summary=engines_summary,
        sections=sections_of_engines,
        verdict=engines_verdict,
    ),
}


def report_of(documents: Sequence[Node]) -> Report:
    """One report of all documents, in their order.

    Raises FileFormatError for an unknown ``schema`` or a field that is wrong.
    """
    reports = [_single(document) for document in documents]
    if len(reports) == 1:
        return reports[0]
    schedules = [node for node in documents if node.child("schema").value == "weft.schedule/1"]
    return Report(
        title="weft report",
        summary="; ".join(f"{report.title}: {report.summary}" for report in reports),
        sections=[
            *([compared_schedules(schedules)] if len(schedules) > 1 else []),
            *(section for report in reports for section in _titled(report)),
        ],
    )


def _titled(report: Report) -> list[Section]:
    """The report's sections under its name."""
    return [
        replace(section, title=f"{report.title}: {section.title}") for section in report.sections
    ]


def _single(document: Node) -> Report:
    schema = document.child("schema")
    kind = _KINDS.get(schema.value) if isinstance(schema.value, str) else None
    if kind is None:
        raise schema.wrong(f"one of {', '.join(_KINDS)}")
    return Report(
        title=kind.title(document),
        summary=kind.summary(document),
        sections=kind.sections(document),
        verdict=kind.verdict(document),
    )
