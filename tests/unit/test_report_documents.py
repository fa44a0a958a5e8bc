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
from weft.cli.report import report as report_command
from weft.closed_form.schedule import closed_form
from weft.errors import FileFormatError, UserError
from weft.report import (
    Badge,
    Chart,
    Report,
    Table,
    compared_rows,
    document,
    read_document,
    report_of,
    schedule_sections,
)
from weft.vocabulary.comparison import compare
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.schedule import Schedule
from weft.vocabulary.workload import Workload

TIMELINE = [
    {"rank": 0, "name": "layer 0", "kind": "compute", "start_us": 0.0, "end_us": 5.0},
    {"rank": 0, "name": "sum", "kind": "all_reduce", "start_us": 5.0, "end_us": 9.5},
]


def schedule(layout: str, engine: str = "vllm-v0", decode: int = 128) -> Schedule:
    workload = Workload(decode_tokens=decode)
    return closed_form(load_spec("llama-3.1-8b"), Layout.parse(layout), workload, engine)


def import_document() -> dict[str, Any]:
    expected, actual = schedule("tp2", "vllm"), schedule("tp2", "vllm", decode=32)
    times = {"min": 1.0, "median": 2.0, "max": 3.0, "total": 4.0}
    imported = actual.to_dict()
    for row in imported["collectives"]:
        row |= {"duration_us": times, "wait_us": None, "transfer_us": None, "bound": "upper"}
    return imported | {
        "source": "import",
        "conformance": {
            "engine": "vllm",
            "explanation": "fewer decode steps than asked for",
            "rows": [row.to_dict() for row in compare(expected, actual)],
        },
        "time_share": [{"step": "decode 1", "kinds_us": {"compute": 90.0, "all_reduce": 10.0}}],
        "waiting": [{"rank": 0, "wait_us": 3.0, "transfer_us": 4.0}],
        "timeline": TIMELINE,
        "unexplained": [{"name": "ncclDevKernel", "count": 2}],
    }


def study_document() -> dict[str, Any]:
    layouts = []
    for name in ("1", "tp2", "tp2xpp2"):
        sources = {source: schedule(name) for source in ("run", "dry_run", "closed_form")}
        layouts.append(
            {
                "layout": sources["run"].to_dict()["layout"],
                "ttft_ms": 100.0,
                "tpot_ms": 10.0,
                "e2e_ms": 1370.0,
                "schedules": {source: one.to_dict() for source, one in sources.items()},
                "rows": compared_rows(sources),
                "timeline": TIMELINE,
            }
        )
    published = {"published": schedule("tp4"), "closed_form": schedule("tp4")}
    return {
        "schema": "weft.study/1",
        "machine": {"cpu": "some CPU", "cores": 2},
        "workload": {"prompt_tokens": 128, "decode_tokens": 128, "batch": 1},
        "layouts": layouts,
        "published": [{"model": "llama-3.1-8b", "layout": "tp4", "rows": compared_rows(published)}],
        "checks": {"passed": 30, "total": 30},
    }


def bench_document() -> dict[str, Any]:
    times = {"min_us": 1.0, "median_us": 2.0, "max_us": 3.0, "algbw_gb_s": 4.0, "busbw_gb_s": 6.0}
    rows = [
        {"algorithm": name, "bytes": size, "dtype": dtype, **times, "wrong": 0}
        for name in ("ring", "one-shot")
        for size in (8192, 65536)
        for dtype in ("bfloat16", "float32")
    ]
    return {"schema": "weft.bench.allreduce/1", "machine": {"gpus": 4}, "rows": rows}


def plan_document() -> dict[str, Any]:
    interval = {"value": 5.0, "low": 4.0, "high": 6.0}
    plans = [
        {"layout": "tp4", "batch": 8, "ttft_ms": 80.0, "tpot_ms": interval, "on_front": True}
        | {"throughput_per_gpu": 300.0, "memory_gib": 20.5, "breakdown_us": {"compute": 4000.0}},
        {"layout": {"tp": 2, "pp": 2}, "ttft_ms": 80.0, "tpot_ms": 7.0, "throughput_per_gpu": 9.0},
    ]
    return {
        "schema": "weft.plan/1",
        "model": "llama-3.1-70b",
        "objective": "latency",
        "workload": {"batch": 8},
        "plans": plans,
        "rejected": [{"layout": "tp3", "reason": "does not divide the 64 attention heads"}],
    }


def scoreboard_document() -> dict[str, Any]:
    row = {"quantity": "TPOT (ms)", "predicted": 5.0, "low": 4.0, "high": 6.0}
    rows = [row | {"name": "tp2", "measured": 5.5}, row | {"name": "tp4", "measured": 7.0}]
    return {"schema": "weft.scoreboard/1", "rows": rows}


def prediction_document() -> dict[str, Any]:
    interval = {"value": 5.0, "low": 4.0, "high": 6.0}
    parts = ("matmul", "attention", "elementwise", "fixed", "communication", "waiting")
    phase = {f"{part}_ms": 1.0 for part in parts} | {
        "collectives": [{"op": "all_reduce", "message_bytes": 8192, "count": 65, "time_us": 5.0}]
    }
    return {
        "schema": "weft.prediction/1",
        "model": "llama-3.1-8b",
        "layout": "tp2",
        "engine": "vllm",
        "workload": {"batch": 1},
        "accelerator": "h200-sxm",
        "fabric": "h200-nvlink",
        **dict.fromkeys(("ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s"), interval),
        "communication_share": 0.25,
        "memory": {"weights_gb": 8.0, "fits": True},
        "prefill": phase,
        "decode": phase,
        "provenance": {"h200-sxm.matmul": {"value": 780.0, "origin": "measured"}},
    }


DOCUMENTS = {
    "schedule": lambda: schedule("tp2xpp2").to_dict(),
    "import": import_document,
    "study": study_document,
    "bench": bench_document,
    "plan": plan_document,
    "scoreboard": scoreboard_document,
    "prediction": prediction_document,
}


def built(value: Any, name: str = "file.json") -> Report:
    return report_of([document(value, name)])


def charts(report: Report) -> dict[str, Any]:
    blocks = [block for section in report.sections for block in section.blocks]
    return {block.title: block.figure for block in blocks if isinstance(block, Chart)}


def tables(report: Report) -> dict[str, Table]:
    blocks = [block for section in report.sections for block in section.blocks]
    return {block.caption: block for block in blocks if isinstance(block, Table)}


@pytest.mark.parametrize("layout", ["tp2", "tp4", "pp4", "tp2xpp2", "sp2", "dp2xtp2"])
@pytest.mark.parametrize("engine", ["weft", "vllm", "vllm-v0"])
def test_chart_adds_up_to_the_totals(layout: str, engine: str) -> None:
    subject = schedule(layout, engine)
    figure = charts(built(subject.to_dict()))["Volume by phase and operation"]
    shown = {trace.name: sum(trace.x) for trace in figure.data}
    assert shown == pytest.approx(subject.totals.by_op)
    rows = tables(built(subject.to_dict()))["Collectives of one rank of each stage"].rows
    assert [row["count"] for row in rows] == [row.count for row in subject.collectives]


def test_growth_is_the_closed_form_at_other_lengths() -> None:
    studied = charts(built(study_document()))["Volume against decode length"]
    line = next(trace for trace in studied.data if trace.name == "tp2xpp2")
    for tokens, size in zip(line.x, line.y, strict=True):
        expected = schedule("tp2xpp2", decode=tokens).totals.volume_bytes
        assert size == pytest.approx(expected)


def test_one_rank_sends_nothing() -> None:
    sections = schedule_sections(schedule("1"))
    assert "sends nothing" in str(sections[0].blocks)


def test_study_verdicts() -> None:
    study = study_document()
    assert built(study).verdict == Badge(text="passed", tone="good")
    study["layouts"][1]["rows"][0] |= {"verdict": "different"}
    study["checks"]["passed"] = 29
    report = built(study)
    assert report.verdict == Badge(text="failed", tone="bad")
    assert report.summary == "29 of 30 checks passed"
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
    assert "every result right" in built(bench).summary
    bench["rows"][0]["wrong"] = 7
    assert "7 wrong elements" in built(bench).summary


def test_plan_and_scoreboard() -> None:
    plan = built(plan_document())
    assert plan.summary.startswith("best: tp4, batch 8 at 5 ms (4 to 6) TPOT")
    assert len(charts(plan)) == 2
    assert built(plan_document() | {"plans": []}).summary.startswith("no layout fits")
    assert built(scoreboard_document()).summary.startswith("1 of 2 measured points")


def test_prediction_shows_intervals_and_inputs() -> None:
    prediction = built(prediction_document())
    assert prediction.summary.startswith("TTFT 5 ms (4 to 6), TPOT 5 ms (4 to 6), 25% of")
    decode = charts(prediction)["One decode step: where the time goes"]
    assert sum(trace.x[0] for trace in decode.data) == 6.0
    assert len(tables(prediction)["Collectives of one step"].rows) == 2
    assert tables(prediction)["Every input of the time model"].rows[0]["origin"] == "measured"


def test_several_schedules_are_compared() -> None:
    documents = [document(schedule(name).to_dict(), name) for name in ("tp2", "tp4", "pp4")]
    report = report_of([*documents, document(bench_document(), "bench")])
    assert report.sections[0].title == "Volume compared"
    figure = charts(report)["Volume by layout and operation"]
    assert len(figure.data[0].y) == 3


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
    for figure in charts(report).values():
        figure.to_json(engine="json")
