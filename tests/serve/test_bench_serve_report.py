"""``weft report`` of serving results: the same figures, and one clear line for damaged files."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damage import JUNK, places
from mock_server import MockBehaviour, start_mock
from weft.bench.serving.arrivals import synthetic
from weft.bench.serving.figures import ServiceLimits
from weft.bench.serving.http_client import parse_url
from weft.bench.serving.payloads import Target
from weft.bench.serving.report import serve_report
from weft.bench.serving.result import ServeResult
from weft.bench.serving.runner import Load, RunOutcome, run_load
from weft.cli.report import report as report_command
from weft.errors import FileFormatError
from weft.report import Chart, Report, Table, document, report_of

PART = {
    "mean_ms": 4.0,
    "communication_ms": 1.0,
    "share": 0.25,
    "by": [{"phase": "decode", "op": "all_reduce", "mean_ms": 1.0, "share": 0.25}],
}


async def _measured() -> tuple[dict[str, Any], RunOutcome]:
    server, url = await start_mock(MockBehaviour(ttft_ms=4, itl_ms=2, fail_every=9))
    target = Target(endpoint=parse_url(url), model="mock")
    load = Load(specs=synthetic(20, 8, 5), concurrency=4, timeout_s=20)
    outcome = await run_load(target, load)
    server.close()
    await asyncio.sleep(0.05)
    settings = {"kind": "closed", "rate_per_s": None, "concurrency": 4}
    limits = ServiceLimits(ttft_ms=1e4)
    result = ServeResult(
        target=target, load=load, outcome=outcome, limits=limits, settings=settings
    )
    return result.to_dict(), outcome


@functools.cache
def measured() -> tuple[dict[str, Any], RunOutcome]:
    result, outcome = asyncio.run(_measured())
    return result | {"communication": {"ttft": PART, "tpot": PART}}, outcome


def bench() -> dict[str, Any]:
    return copy.deepcopy(measured()[0])


def built(value: Any) -> Report:
    return report_of([document(value, "file.json")])


def tables(report: Report) -> dict[str, Table]:
    return {b.caption: b for s in report.sections for b in s.blocks if isinstance(b, Table)}


def charts(report: Report) -> list[Chart]:
    return [b for s in report.sections for b in s.blocks if isinstance(b, Chart)]


def test_the_page_has_the_figures_of_the_file():
    value = bench()
    report = built(value)
    assert report.verdict is not None
    assert (report.verdict.text, report.verdict.tone) == ("2 failed", "bad")
    found = tables(report)
    rows = found["Milliseconds, completed requests"].rows
    assert len(rows) == 16
    for row in rows:
        summary = value["definitions"][row["definition"]][row["metric"]]
        assert row["p50"] == round(summary["p50"]["value"], 4)
    assert {row["good"] for row in found["Goodput"].rows} == {18}
    assert [row["op"] for row in found["Inside collectives, mean of the requests"].rows] == [
        "all",
        "all_reduce",
    ] * 2
    (failure,) = found["Failures"].rows
    assert failure["requests"] == 2
    for chart in charts(report):
        (ttft, *_) = chart.figure.data
        assert list(ttft.x) == sorted(ttft.x)


def test_a_run_with_its_records_draws_every_request():
    value, outcome = measured()
    plain, full = built(value), serve_report(value, outcome)
    assert full.title == plain.title
    assert len(charts(full)) == len(charts(plain)) + 1
    assert len(charts(full)[-1].figure.data[0].x) == 18


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
    for chart in charts(report):
        chart.figure.to_json(engine="json")


@pytest.mark.parametrize("field", ["target", "requests", "throughput", "definitions", "client"])
def test_a_missing_part_is_named(field):
    value = bench()
    value[field] = 3
    with pytest.raises(FileFormatError, match=f"file.json: field {field} is 3, must be"):
        built(value)
