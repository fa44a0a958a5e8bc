"""``weft report`` of serving results: the same figures, and one clear line for damaged files."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damage import JUNK, places
from report_documents import bench, measured
from weft.bench.serving.report import serve_report
from weft.cli.report import report as report_command
from weft.errors import FileFormatError
from weft.report import Badge, Block, Chart, Folded, Report, Table, document, render, report_of


def built(value: Any) -> Report:
    return report_of([document(value, "file.json")])


def blocks(report: Report) -> list[Block]:
    found = [block for section in report.sections for block in section.blocks]
    return found + [b for block in found if isinstance(block, Folded) for b in block.blocks]


def tables(report: Report) -> dict[str, Table]:
    return {block.caption: block for block in blocks(report) if isinstance(block, Table)}


def charts(report: Report) -> list[Chart]:
    return [block for block in blocks(report) if isinstance(block, Chart)]


def test_the_page_has_the_figures_of_the_file():
    value = bench()
    report = built(value)
    assert report.answer.verdict == Badge(text="2 failed", tone="bad")
    found = tables(report)
    own = found["Milliseconds, completed requests"].rows
    assert [row["metric"] for row in own] == ["ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"]
    rows = found["Milliseconds by definition"].rows
    assert len(rows) == 16
    assert found["Milliseconds by definition"].folded
    for row in rows:
        summary = value["definitions"][row["definition"]][row["metric"]]
        assert row["p50"] == round(summary["p50"]["value"], 4)
    assert {row["good"] for row in found["Goodput by definition"].rows} == {18}
    assert [row["op"] for row in found["Inside collectives, mean of the requests"].rows] == [
        "all",
        "all_reduce",
    ] * 2
    (failure,) = found["Failures"].rows
    assert failure["requests"] == 2
    for chart in charts(report):
        values = [point.x for point in chart.figure.series[0].points]
        assert values == sorted(values)


def test_the_answer_says_whether_the_limits_were_met():
    value = bench()
    answer = built(value).answer
    some = answer.headlines[0]
    assert (some.value, some.note, some.tone) == ("90.0%", "not met: 18 of 20", "bad")
    assert answer.warnings == ["2 of 20 requests failed"]
    value["definitions"]["weft"]["goodput"] |= {"share": 1.0, "num_good": 20}
    every = built(value).answer.headlines[0]
    assert (every.value, every.note, every.tone) == ("100.0%", "met: 20 of 20", "good")
    value["definitions"]["weft"]["goodput"] = None
    assert built(value).answer.headlines[0].label == "TTFT, 99th percentile"


def test_a_late_client_is_told_first():
    value = bench()
    value["requests"] |= {"failed": 0, "errors": {}}
    value["client"]["send_lag_ms"]["p99"] = 20.0
    answer = built(value).answer
    assert answer.verdict == Badge(text="client was late", tone="bad")
    assert "THE CLIENT WAS LATE" in answer.warnings[0]


def test_a_run_with_its_records_draws_every_request():
    value, outcome = measured()
    plain, full = built(value), serve_report(value, outcome)
    assert full.title == plain.title
    assert len(charts(full)) == len(charts(plain)) + 1
    assert [len(c.figure.series[0].points) for c in charts(full) if c.title == "Each request"] == [
        18
    ]


def test_the_command_takes_it(tmp_path, capsys):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench()))
    report_command([path], tmp_path / "report.html")
    assert "Serving benchmark: mock" in (tmp_path / "report.html").read_text()
    capsys.readouterr()


def test_a_run_of_which_nothing_completed():
    value = bench()
    for under in value["definitions"].values():
        for metric in ("ttft", "tpot", "itl", "e2e"):
            under[f"{metric}_ms"] = None
    value["client"]["send_lag_ms"] = None
    rows = tables(built(value))["Milliseconds, completed requests"].rows
    assert all(row["mean"] is None for row in rows)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_damage_is_a_report_or_one_clear_line(data):
    value = bench()
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


@pytest.mark.parametrize("field", ["target", "requests", "throughput", "definitions", "client"])
def test_a_missing_part_is_named(field):
    value = bench()
    value[field] = 3
    with pytest.raises(FileFormatError, match=f"file.json: field {field} is 3, must be"):
        built(value)
