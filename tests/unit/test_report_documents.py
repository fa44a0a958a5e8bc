"""Reports from JSON documents: right numbers, and one clear line for anything damaged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damage import JUNK, places
from report_documents import (
    DOCUMENTS,
    bench_document,
    import_document,
    plan_document,
    prediction_document,
    schedule,
    scoreboard_document,
    study_document,
)
from weft.cli.report import report as report_command
from weft.errors import FileFormatError, UserError
from weft.report import (
    Badge,
    Block,
    Chart,
    Folded,
    Report,
    Table,
    compared_rows,
    document,
    read_document,
    render,
    report_of,
)
from weft.report.drawing import Figure


def built(value: Any, name: str = "file.json") -> Report:
    return report_of([document(value, name)])


def blocks(report: Report) -> list[Block]:
    found = [block for section in report.sections for block in section.blocks]
    return found + [b for block in found if isinstance(block, Folded) for b in block.blocks]


def charts(report: Report) -> dict[str, Figure]:
    return {block.title: block.figure for block in blocks(report) if isinstance(block, Chart)}


def tables(report: Report) -> dict[str, Table]:
    return {block.caption: block for block in blocks(report) if isinstance(block, Table)}


def sizes(figure: Figure) -> dict[str, list[float]]:
    """Lengths of the bars of each name."""
    return {one.name: [bar.high - bar.low for bar in one.bars] for one in figure.series}


@pytest.mark.parametrize("layout", ["tp2", "tp4", "pp4", "tp2xpp2", "sp2", "dp2xtp2"])
@pytest.mark.parametrize("engine", ["weft", "vllm", "vllm-v0"])
def test_chart_adds_up_to_the_totals(layout: str, engine: str) -> None:
    subject = schedule(layout, engine)
    figure = charts(built(subject.to_dict()))["Volume by phase and operation"]
    shown = {name: sum(bars) for name, bars in sizes(figure).items()}
    assert shown == pytest.approx(subject.totals.by_op)
    rows = tables(built(subject.to_dict()))["Collectives of one rank of each stage"].rows
    assert [row["count"] for row in rows] == [row.count for row in subject.collectives]


def test_growth_is_the_closed_form_at_other_lengths() -> None:
    studied = charts(built(study_document()))["Volume against decode length"]
    line = next(one for one in studied.series if one.name == "tp2xpp2")
    for point in line.points:
        expected = schedule("tp2xpp2", decode=int(point.x)).totals.volume_bytes
        assert point.y == pytest.approx(expected)


def test_one_rank_sends_nothing() -> None:
    sections = built(schedule("1").to_dict()).sections
    assert "sends nothing" in str(sections[0].blocks)


def test_study_verdicts() -> None:
    study = study_document()
    assert built(study).answer.verdict == Badge(text="passed", tone="good")
    study["layouts"][1]["rows"][0] |= {"verdict": "different"}
    study["checks"]["passed"] = 29
    report = built(study)
    assert report.answer.verdict == Badge(text="failed", tone="bad")
    assert report.answer.summary == "29 of 30 checks passed"
    assert report.answer.warnings == ["tp2: rows differ between the sources"]
    titles = [section.title for section in report.sections]
    assert len(set(titles)) == len(titles) == 6
    verdicts = [row["verdict"] for row in tables(report)["Layouts"].rows]
    assert verdicts == [
        Badge(text="equal", tone="good"),
        Badge(text="different", tone="bad"),
        Badge(text="equal", tone="good"),
    ]


def test_compared_rows_see_other_counts_and_missing_rows() -> None:
    rows = compared_rows({"run": schedule("tp2", decode=64), "closed_form": schedule("tp2")})
    verdicts = {(row["row"]["phase"], row["row"]["op"]): row["verdict"] for row in rows}
    assert verdicts["prefill", "all_reduce"] == "equal"
    assert verdicts["decode", "all_reduce"] == "different"
    rows = compared_rows({"run": schedule("1"), "closed_form": schedule("tp2")})
    assert {row["counts"]["run"] for row in rows} == {None}
    assert {row["verdict"] for row in rows} == {"different"}


def test_import_shows_conformance_and_times() -> None:
    report = built(import_document())
    conformance = tables(report)["Expected and actual calls"].rows
    assert [row["verdict"].text for row in conformance] == [  # type: ignore[union-attr]
        *("equal", "equal", "different", "different")
    ]
    assert {"Where the time of each step went", "Waiting by rank", "Timeline of one step"} <= set(
        charts(report)
    )
    assert any(caption.startswith("Unexplained") for caption in tables(report))


def test_bench_has_a_chart_for_each_dtype() -> None:
    bench = bench_document()
    assert len(charts(built(bench))) == 2
    assert "every result right" in built(bench).answer.summary
    bench["rows"][0]["wrong"] = 7
    assert "7 wrong elements" in built(bench).answer.summary


def test_plan_and_scoreboard() -> None:
    plan = built(plan_document())
    assert plan.answer.summary.startswith("best: tp4, batch 8 at 5 ms (4 to 6) TPOT")
    assert len(charts(plan)) == 2
    assert built(plan_document() | {"plans": []}).answer.summary.startswith("no layout fits")
    assert built(scoreboard_document()).answer.summary.startswith("1 of 2 measured points")


def test_prediction_shows_intervals_and_inputs() -> None:
    prediction = built(prediction_document())
    assert prediction.answer.summary.startswith("TTFT 5 ms (4 to 6), TPOT 5 ms (4 to 6), 25% of")
    decode = charts(prediction)["One decode step: where the time goes"]
    assert sum(bar for bars in sizes(decode).values() for bar in bars) == 6.0
    assert len(tables(prediction)["Collectives of one step"].rows) == 2
    assert tables(prediction)["Every input of the time model"].rows[0]["origin"] == "measured"


def test_several_schedules_are_compared() -> None:
    documents = [document(schedule(name).to_dict(), name) for name in ("tp2", "tp4", "pp4")]
    report = report_of([*documents, document(bench_document(), "bench")])
    assert report.sections[0].title == "Volume compared"
    figure = charts(report)["Volume by layout and operation"]
    assert len(figure.lanes) == 3


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_page_begins_with_an_answer_and_is_small(name: str) -> None:
    report = built(DOCUMENTS[name]())
    assert report.answer.summary
    assert len(report.answer.headlines) <= 4
    assert report.answer.headlines
    assert len(render(report).encode()) < 200_000


def test_a_timeline_of_many_events_stays_small() -> None:
    events = [
        {"rank": rank, "name": "n", "kind": kind, "start_us": 9.0 * n, "end_us": 9.0 * n + 4}
        for rank in range(16)
        for n in range(3000)
        for kind in ("compute", "wait")
    ]
    value = import_document() | {"timeline": events}
    assert len(render(built(value)).encode()) < 1_500_000


def test_what_does_not_conform_is_told_first() -> None:
    value = import_document()
    value["conformance"] |= {"conforms": False, "verdict": "does not conform"}
    value["notes"] = ["partial: rank 3 of 4 not given", "clocks are fine"]
    answer = built(value).answer
    assert answer.verdict == Badge(text="does not conform", tone="bad")
    assert answer.warnings == [
        "fewer decode steps than asked for",
        "partial: rank 3 of 4 not given",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a JSON document"),
        ('{"schema": "weft.sched', "not a JSON document"),
        ("[" * 100_000, "not a JSON document"),
        ("\xff\xfe", "not a JSON document"),
        ("[1]", "must be an object"),
        ("{}", "field schema is null, must be one of weft.schedule/1"),
        ('{"schema": ["weft.study/1"]}', "must be one of"),
        ('{"schema": "weft.study/9"}', "must be one of"),
        ('{"schema": "weft.plan/1"}', "field model is null, must be a string"),
        ('{"schema": "weft.study/1", "checks": 3}', "field checks is 3, must be an object"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content.encode("latin-1"))
    output = tmp_path / "report.html"
    with pytest.raises(FileFormatError) as error:
        report_command([path], output)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    assert not output.exists()


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such file"):
        read_document(tmp_path / "none.json")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_document(tmp_path)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1" + "0" * 400, '"fast"', "true", "[1]"])
def test_wrong_numbers_are_named(value: str) -> None:
    bench = bench_document()
    bench["rows"][1]["median_us"] = json.loads(value)
    with pytest.raises(
        FileFormatError, match=r"file.json: field rows\[1\]\.median_us is .*must be"
    ):
        built(bench)


def test_command_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for name in ("schedule", "plan"):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(DOCUMENTS[name]()))
    output = tmp_path / "both.html"
    report_command(paths, output)
    assert capsys.readouterr().out == f"{output}\n"
    assert "llama-3.1-8b · tp2xpp2 · vllm-v0: Volume" in output.read_text()
    with pytest.raises(UserError, match="also an input"):
        report_command(paths, paths[0])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(sorted(DOCUMENTS)))
def test_any_damage_is_a_report_or_one_clear_line(data: st.DataObject, name: str) -> None:
    value = copy.deepcopy(DOCUMENTS[name]())
    place = data.draw(st.sampled_from(places(value)))
    junk = data.draw(JUNK)
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = junk
    error = None
    try:
        report = built(value)
    except FileFormatError as caught:
        error = str(caught)
    if error is not None:
        assert "\n" not in error
        assert len(error) < 400
        return
    render(report)
