"""The page of a study of engines: its answer, what the papers found, its figures, damaged files."""

from __future__ import annotations

import copy
import csv
import io
import xml.etree.ElementTree as ET
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damage import JUNK, places
from report_documents import case, study
from weft.errors import FileFormatError
from weft.report import Badge, Report, Table, document, render, report_of
from weft.report.engines_document import read_study
from weft.report.engines_findings import answers, findings
from weft.report.paper_files import paper_files


def built(value: Any) -> Report:
    return report_of([document(value, "study.json")])


def read(value: Any) -> Any:
    return read_study(document(value, "study.json"))


def test_the_answer_comes_first():
    (answer,) = answers(read(study()))
    assert answer == (
        "chat: vllm tp4 serves the most within TPOT 30 ms: 10 requests/s on 4 ranks; its TPOT at the "
        "99th percentile is 50% below the limit. Its decode steps are bound by compute (40% of the step)."
    )
    report = built(study())
    assert report.answer.summary == answer
    assert report.answer.verdict == Badge(text="1 cases failed, 0 do not conform", tone="bad")
    assert report.answer.warnings == ["vllm pp2, chat: not ready"]
    fastest = {one.label: (one.value, one.note) for one in report.answer.headlines}
    assert fastest["lowest TPOT, chat"] == ("5 ms", "vllm tp4")
    (none,) = answers(read(study(limits_ms={"tpot_ms": 1.0})))
    assert "none meets TPOT 1 ms; nearest is vllm tp4" in none
    (free,) = answers(read(study(limits_ms={})))
    assert "vllm tp4 answers a request alone soonest (180 ms)" in free
    assert answers(read(study(cases=study()["cases"][-1:]))) == ["chat: no case finished."]


def test_the_papers_findings_are_confirmed_or_contradicted():
    found = {(row["engine"], row["finding"]): row["here"] for row in findings(read(study()))}
    assert found["weft", "TP has the lowest latency of 2 ranks"] == "confirmed"
    assert found["vllm", "PP sends the least of 4 ranks"] == "confirmed"
    assert found["vllm", "hybrids lie between TP and PP on 4 ranks"] == "confirmed"
    assert found["weft", "decode of tp2 is bound by its all-reduces"] == "confirmed"
    slow = study()
    slow["cases"][1] = case("weft", "tp2", 20.0)
    found = {(row["engine"], row["finding"]): row["here"] for row in findings(read(slow))}
    assert found["weft", "TP has the lowest latency of 2 ranks"] == "contradicted"


def test_the_page_has_every_case_and_both_all_reduces():
    report = built(study())
    tables = {b.caption: b for s in report.sections for b in s.blocks if isinstance(b, Table)}
    rows = tables["Every case"].rows
    assert len(rows) == 9
    assert rows[-1]["reason"] == "not ready"
    assert rows[1]["tpot_predicted_ms"] == 7.7
    assert rows[1]["in collectives"] == "50% of decode"
    (both,) = tables["TPOT of a request alone"].rows
    assert (both["engines"], both["ratio"]) == ("weft beside weft-library", 0.875)


def test_figures_are_files_for_a_paper():
    some = study(cases=study()["cases"][:3])
    files = dict(paper_files(document(some, "study.json")))
    names = {name.removeprefix("chat-").rpartition(".")[0] for name in files}
    assert names >= {"e2e", "ttft", "tpot", "volume", "volume-by-length", "decode-step",
                     "strong-scaling", "service-levels", "messages-weft-tp2"}  # fmt: skip
    for name, content in files.items():
        if name.endswith(".svg"):
            root = ET.fromstring(content)
            assert root.tag.endswith("svg")
        else:
            assert list(csv.DictReader(io.StringIO(content)))
    rows = list(csv.DictReader(io.StringIO(files["chat-tpot.csv"])))
    assert {"engine": "weft", "layout": "tp2", "tpot_ms": "7.0"} in rows
    again = dict(paper_files(document(some, "study.json")))
    assert files["chat-volume.svg"] == again["chat-volume.svg"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_damage_is_a_report_or_one_clear_line(data):
    value = copy.deepcopy(study(cases=study()["cases"][1:4:2]))
    place = data.draw(st.sampled_from(places(value)))
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = data.draw(JUNK)
    damage = None
    try:
        report = built(value)
    except FileFormatError as error:
        damage = str(error)
    if damage is not None:
        assert "\n" not in damage
        return
    render(report)
