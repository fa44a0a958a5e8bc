"""``weft study engines`` on engines that answer on time, die, or never start."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from weft.cli import main
from weft.errors import FileFormatError, UserError
from weft.report import Report, document, report_of
from weft.study.engines.plan import parse_pairs, parse_urls, parse_workloads
from weft.study.engines.table import ENGINES, check_command, command_line
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload

MOCK = (
    f"{shlex.quote(sys.executable)} {Path(__file__).parents[1] / 'mock_engine.py'} --port {{port}}"
)
BASE = [
    "study",
    "engines",
    "--engines",
    "sglang",
    "--layouts",
    "1",
    "--requests",
    "4",
    "--concurrency",
    "2",
    "--rates",
    "20",
]


def study(folder: Path, *options: str, command: str = MOCK) -> tuple[int, dict[str, Any]]:
    code = main.run(
        [*BASE, "--engine-command", f"sglang={command}", "--output", str(folder), *options]
    )
    return code, json.loads((folder / "study.json").read_text())


def is_running(pid: int) -> bool:
    """Ended children of nobody may stay as zombies where no init reaps them."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_times_of_an_engine_that_answers_on_time(tmp_path: Path, capsys):
    limits = ["--goodput", "ttft:9000,tpot:5000"]  # the machine may be busy
    code, found = study(tmp_path, "--workloads", "chat=8/9/2", *limits)
    assert code == 0
    (case,) = found["cases"]
    closed, opened = case["loads"]
    assert (closed["concurrency"], opened["rate_per_s"]) == (2, 20)
    for load in (closed, opened):
        figures = load["result"]["definitions"]["weft"]
        assert figures["ttft_ms"]["p50"]["value"] >= 20
        assert figures["tpot_ms"]["p50"]["value"] > 0
    assert "sglang 1 serves the most within TTFT 9,000 ms, TPOT 5,000 ms" in (
        tmp_path / "report.html"
    ).read_text().replace("&nbsp;", " ")
    capsys.readouterr()


def test_rates_to_the_knee(tmp_path: Path, capsys, monkeypatch):
    """The mock answers any number of requests alike: it has no knee."""
    monkeypatch.setattr("weft.bench.serving.sweep._MOST_DOUBLINGS", 2)
    options = ["--workloads", "chat=4/2/2", "--sweep", "--concurrency", "1"]
    options += ["--seconds", "0.2", "--requests", "2"]
    _, found = study(tmp_path, *options, "--goodput", "ttft:1")
    assert len(found["cases"][0]["loads"]) == 1  # not even a request alone
    assert "none meets TTFT 1 ms; nearest is sglang 1" in (tmp_path / "report.html").read_text()
    _, found = study(tmp_path, *options, "--goodput", "ttft:9000")
    rates = [load["rate_per_s"] for load in found["cases"][0]["loads"][1:]]
    assert len(rates) == 3
    assert all(after == pytest.approx(2 * rate) for rate, after in pairwise(rates))
    capsys.readouterr()


def test_a_killed_engine_costs_one_row_and_leaves_nothing(tmp_path: Path, capsys):
    children = tmp_path / "children"
    workloads = "first=4/4/2,deadly=7/4/2,last=5/4/2"
    command = f"{MOCK} --die-on 7 --children {children}"
    code, found = study(tmp_path, "--workloads", workloads, command=command)
    assert code == 1
    assert [case["status"] for case in found["cases"]] == ["done", "failed", "done"]
    assert "SIGKILL" in found["cases"][1]["reason"]
    assert "1 of 3 cases failed" in capsys.readouterr().err
    pids = [int(line) for line in children.read_text().split()]
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cases").iterdir()}
    code, again = study(tmp_path, "--workloads", workloads, command=command)
    assert [case["status"] for case in again["cases"]] == ["done", "failed", "done"]
    assert len(children.read_text().split()) == 3  # the failed case alone is tried again
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cases").iterdir()}
    assert {path.name for path in after if after[path] != before[path]} == {"sglang-1-deadly.json"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_study_leaves_nothing(signum: int, tmp_path: Path):
    children = tmp_path / "children"
    command = f"sglang={MOCK} --children {children} --itl-ms 100"
    options = [*BASE, "--workloads", "a=4/600/2", "--output", str(tmp_path)]
    running = subprocess.Popen(
        [sys.executable, "-m", "weft", *options, "--engine-command", command],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    try:
        deadline = time.monotonic() + 60
        while not children.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        running.send_signal(signum)
        assert running.wait(10) == 130
    finally:
        running.kill()
    (pid,) = (int(line) for line in children.read_text().split())
    assert not is_running(pid)


def test_an_engine_that_never_starts_says_what_it_said(tmp_path: Path, capsys):
    command = "sh -c 'echo no such device >&2; exit 3' {port}"
    code, found = study(tmp_path, "--workloads", "chat=8/4/2", command=command)
    assert code == 1
    assert found["cases"][0]["reason"] == "its server ended (exit code 3): no such device"
    command = "sh -c 'sleep 60' {port}"
    code, found = study(tmp_path, "--workloads", "chat=8/4/2", "--ready", "1", command=command)
    assert found["cases"][0]["reason"] == "not ready within 1 s"
    command = "no-such-program --port {port}"
    code, found = study(tmp_path, "--workloads", "chat=8/4/2", command=command)
    assert "no-such-program: No such file" in found["cases"][0]["reason"]
    capsys.readouterr()


def test_cases_after_the_time_limit_are_left_out(tmp_path: Path, capsys):
    workloads = ["--workloads", "first=4/4/2,last=5/4/2", "--time-limit", "1e-9"]
    code, found = study(tmp_path, *workloads)
    assert code == 1
    assert [case["status"] for case in found["cases"]] == ["left out", "left out"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engines", "tgi"], "tgi: unknown; choose from weft"),
        (["--engines", "sglang"], "weft does not start it"),
        (["--workloads", "chat=8/4"], "NAME=PROMPT/DECODE/BATCH"),
        (["--workloads", "chat=8/4/0"], "batch"),
        (["--workloads", "talk"], "talk: unknown"),
        (["--layouts", "tp3"], "tp"),
        (["--layouts", "tp2,"], "layout"),
        (["--engine-command", "weft=serve {porto}"], "{porto} is no placeholder"),
        (["--engine-command", "weft=serve {port"], "expected '}'"),
        (["--engine-command", "weft=' "], "No closing quotation"),
        (["--engine-command", "weft"], "write it as NAME=VALUE"),
        (["--engine-command", "wefd=serve"], "wefd"),
        (["--python", "weft="], "write it as NAME=VALUE"),
        (["--url", "weft=http://x:1"], "ENGINE:LAYOUT=URL"),
        (["--url", "weft:tp2=ftp://x"], "ftp"),
        (["--sweep"], "--goodput"),
        (["--workloads", "../x=4/4/1"], "NAME=PROMPT/DECODE/BATCH"),
        (["--layouts", "sp2", "--engines", "vllm"], "has no {sp}"),
        (["--engine-command", "weft={python}"], "has no {port}"),
        (["--url", "vllm:tp4=http://x:1"], "none of the engines and layouts"),
        (["--model", "deepseek-v3", "--engines", "vllm"], "name a folder"),
        (["--workloads", "a=200000/4/1"], "131072 positions"),
        (["--concurrency", "0"], "--concurrency 0"),
        (["--concurrency", "a"], "--concurrency a"),
        (["--rates", "-1"], "--rates -1"),
        (["--requests", "0"], "requests"),
        (["--profile-tokens", "1"], "--profile-tokens 1"),
        (["--weights", "none"], "weights"),
        (["--goodput", "ttft"], "goodput"),
        (["--ready", "nan"], "ready"),
        (["--time-limit", "-1"], "--time-limit -1"),
        (["--seconds", "0"], "seconds"),
        (["--fabric", "hgx-h200"], "--accelerator"),
        (["--accelerator", "h999"], "h999"),
        (["--output", "/nowhere"], "/nowhere"),
        (["--model", "lama-3.1-8b"], "lama-3.1-8b"),
    ],
)
def test_mistakes_are_one_line(options: list[str], message: str, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.run(["study", "engines", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_commands_are_shown(capsys):
    assert main.run(["study", "engines", "--engines", "weft,vllm", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "vllm.entrypoints.openai.api_server --model {model}" in shown


@pytest.mark.parametrize("engine", [one for one in ENGINES.values() if one.command])
def test_every_command_line_can_be_filled_in(engine):
    check_command(engine.name, engine.command)
    words = command_line(
        engine.command,
        Layout.parse("tp2xpp2"),
        python="/a b/python",
        model="m",
        port=1,
        weights=engine.dummy,
        device="cpu",
        traces="/t t",
        length=99,
    )
    assert "/a b/python" in words
    assert words.count("2") == 2
    for word in words:
        if word.startswith("{"):
            json.loads(word)


def test_what_is_read_of_options():
    assert parse_workloads("paper, a=1/2/3") == {
        "paper": Workload(),
        "a": Workload(prompt_tokens=1, decode_tokens=2, batch=3),
    }
    assert parse_pairs("python", ["vllm=/x=y"]) == {"vllm": "/x=y"}
    assert parse_urls(["vllm:tp2=http://h:1/"]) == {("vllm", "tp2"): "http://h:1"}
    with pytest.raises(UserError, match="unknown"):
        parse_urls(["tgi:tp2=http://h:1"])


def report(value: dict[str, Any]) -> Report:
    return report_of([document(value, "study.json")])


def test_a_damaged_file_is_one_line():
    with pytest.raises(
        FileFormatError, match=r"study\.json: Object missing required field `cases`"
    ):
        report({"schema": "weft.study.engines/1", "model": "m"})
