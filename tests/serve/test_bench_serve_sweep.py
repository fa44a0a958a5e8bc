"""``weft bench serve --sweep``: its knee beside a fine sweep's, and prompts of files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.bench.serving.prompt_files import read_prompts
from weft.bench.serving.sweep import ATTAINMENT, Sweep, SweepPoint, parse_sweep, share_interval
from weft.cli import main
from weft.errors import FileFormatError, UserError


@pytest.fixture(scope="module")
def mock_url() -> Iterator[str]:
    """A mock server: 20 ms to the first token, 5 ms between tokens."""
    server = Path(__file__).parents[1] / "mock_server.py"
    command = [sys.executable, str(server), "--ttft-ms", "20", "--itl-ms", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def queue(service_s: float, limit_s: float, seed: int, num: int = 200) -> Any:
    """One server, one request at a time: share of those answered within the limit, by the rate."""
    generator = random.Random(seed)
    gaps = [generator.expovariate(1.0) for _ in range(num)]

    def measure(rate: float) -> SweepPoint:
        free = now = 0.0
        good = 0
        for gap in gaps:
            now += gap / rate
            free = max(free, now) + service_s
            good += free - now <= limit_s
        goodput = {"share": good / num, "num_good": good, "num_judged": num, "requests_per_s": rate}
        return SweepPoint(load=rate, result={"definitions": {"weft": {"goodput": goodput}}})

    return measure


@settings(max_examples=25, deadline=None)
@given(
    service_s=st.floats(0.001, 2.0),
    slack=st.floats(1.5, 40.0),
    start=st.floats(0.05, 100.0),
    seed=st.integers(0, 99),
)
def test_the_knee_is_that_of_a_fine_sweep(service_s, slack, start, seed):
    measure = queue(service_s, slack * service_s, seed)
    sweep = Sweep(kind="rate", measure=measure)
    points = list(sweep.run(start / service_s))
    if all(point.holds for point in points) or not any(point.holds for point in points):
        return  # further than sixteen doublings away
    assert sweep.knee is not None
    fine = [sweep.knee * 1.005**step for step in range(-40, 41)]
    assert not measure(fine[-1]).holds
    best = max(rate for rate in fine if measure(rate).holds)
    assert sweep.knee == pytest.approx(best, rel=0.05)
    assert len(points) <= 26


def test_concurrency_is_whole_and_loads_may_be_given():
    def measure(load: float) -> SweepPoint:
        share = 1.0 if load <= 11 else 0.5
        goodput = {"share": share, "num_good": 1, "num_judged": 1, "requests_per_s": load}
        return SweepPoint(load=load, result={"definitions": {"weft": {"goodput": goodput}}})

    sweep = Sweep(kind="concurrency", measure=measure)
    loads = [point.load for point in sweep.run(1)]
    assert loads == [1, 2, 4, 8, 16, 11, 13, 12]
    assert sweep.knee == 11
    assert Sweep(kind="concurrency", measure=measure).knee is None
    listed = Sweep(kind="rate", measure=measure, loads=(3, 20, 5))
    assert [point.load for point in listed.run(1)] == [3, 20, 5]
    assert listed.knee == 5
    assert [point.load for point in Sweep(kind="concurrency", measure=measure).run(12)][:2] == [
        12,
        6,
    ]


def test_what_a_sweep_is_called():
    assert parse_sweep("rate") == ("rate", ())
    assert parse_sweep("concurrency=1,8") == ("concurrency", (1.0, 8.0))
    for wrong in (
        "",
        "rates",
        "rate=",
        "rate=0",
        "rate=a",
        "concurrency=1.5",
        "rate=nan",
        "rate=1,",
    ):
        with pytest.raises(UserError, match="`sweep`"):
            parse_sweep(wrong)


@given(num=st.integers(1, 500), data=st.data())
def test_shares_lie_in_their_intervals(num, data):
    good = data.draw(st.integers(0, num))
    low, high = share_interval(good, num)
    assert 0 <= low < high <= 1
    assert low - 1e-12 <= good / num <= high + 1e-12


def test_the_command_finds_the_knee(mock_url: str, tmp_path: Path, capsys):
    output, page = tmp_path / "sweep.json", tmp_path / "sweep.html"
    options = ["--sweep", "concurrency=1,2", "--goodput", "ttft:9000", "--num-requests", "8"]
    more = [
        "--output-tokens",
        "4",
        "--warm-up",
        "1",
        "--output",
        str(output),
        "--report",
        str(page),
    ]
    assert main.run(["bench", "serve", "--url", mock_url, *options, *more]) == 0
    found = json.loads(output.read_text())
    assert (found["of"], found["knee"], found["attainment"]) == ("concurrency", 2, ATTAINMENT)
    assert [point["share"]["value"] for point in found["points"]] == [1, 1]
    assert found["points"][0]["result"]["requests"]["completed"] == 8
    said = capsys.readouterr().out
    assert "2 open requests keep 99% within TTFT 9,000 ms; no higher load was tried" in said
    assert "Goodput against load" in page.read_text()


def test_limits_that_a_request_alone_misses(mock_url: str, capsys):
    options = ["--sweep", "rate", "--goodput", "ttft:1", "--num-requests", "4"]
    more = ["--output-tokens", "2", "--warm-up", "0"]
    assert main.run(["bench", "serve", "--url", mock_url, *options, *more]) == 0
    assert "no load keeps 99% of the requests within TTFT 1 ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--sweep", "rate"],
        ["--sweep", "rate", "--goodput", "ttft:1", "--vllm-output", "x.json"],
        ["--sweep", "rates", "--goodput", "ttft:1"],
        ["--prompts", "missing.json", "--concurrency", "1"],
        ["--prompts", "missing.json", "--trace", "x", "--concurrency", "1"],
        ["--prompts", "missing.json", "--token-ids-below", "9", "--concurrency", "1"],
    ],
)
def test_mistakes_are_one_line(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.run(["bench", "serve", "--url", "http://127.0.0.1:9", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1


SHAREGPT = [
    {"conversations": [{"from": "human", "value": f"question {n} of a user"},
                       {"from": "gpt", "value": "an answer of six words here"}]}
    for n in range(6)
] + [{"conversations": []} | {"text": "too short"} | {"output_tokens": 3}]  # fmt: skip


def test_prompts_of_sharegpt_and_of_lines(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text(json.dumps(SHAREGPT))
    specs = read_prompts(path, None, None, 0)
    assert len(specs) == 6
    assert {spec.output_tokens for spec in specs} == {8}
    assert specs[0].text == "question 0 of a user"
    assert len(read_prompts(path, 5, 13, 0)) == 13
    assert read_prompts(path, 5, 3, 1) == read_prompts(path, 5, 3, 1)
    lines = [{"prompt": "one two three four", "output_tokens": 9},
             {"messages": [{"role": "user", "content": "one two three four five"}], "max_tokens": 2}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert [spec.output_tokens for spec in read_prompts(path, None, None, 0)] == [9, 2]
    for wrong in ("", "[]", "[1]", "{", '{"prompt": "one two three four"}', '{"question": 1}'):
        path.write_text(wrong)
        with pytest.raises(FileFormatError, match="`prompts`"):
            read_prompts(path, None, None, 0)


def test_prompts_are_sent_as_they_stand(mock_url: str, tmp_path: Path, capsys):
    path, output = tmp_path / "prompts.json", tmp_path / "out.json"
    path.write_text(json.dumps(SHAREGPT))
    for api in ("completions", "chat"):
        options = [
            "--prompts",
            str(path),
            "--concurrency",
            "2",
            "--num-requests",
            "7",
            "--api",
            api,
        ]
        command = ["bench", "serve", "--url", mock_url, *options, "--output", str(output)]
        assert main.run([*command, "--warm-up", "0"]) == 0
        found = json.loads(output.read_text())
        assert found["requests"]["completed"] == 7
        assert found["tokens"]["output"] == 7 * 8
        assert found["load"]["prompts"] == str(path)
    capsys.readouterr()
