"""Every option of every command refuses what it cannot take, in one line that names both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from weft.cli.main import run

TRIES = Path(__file__).parents[1] / "hostile_options.py"


@pytest.mark.timeout(3000)
def test_every_option_of_every_command():
    """``WEFT_HOSTILE_EVERY=1`` tries every value, not one in twelve of them."""
    env = {"WEFT_HOSTILE_EVERY": "12"} | os.environ
    done = subprocess.run(
        [sys.executable, str(TRIES)], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    tries = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(tries) > 120
    problems = [
        f"weft {one['command']} {one['option']}={one['value'][:40]!r}: {one['problem']}"
        for one in tries
        if one["problem"]
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "words",
    [
        "trace llama-3.1-405b --tp 128 --prompt 128 --decode 8 --dry-run",
        "predict llama-3.1-405b --tp 8 --dp 8192",
        "predict llama-3.1-405b --tp 128 --pp 2 --dp 256 --nodes 8192",
    ],
)
def test_large_layouts_are_described(words, capsys):
    assert run([*words.split(), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["collectives"]


@pytest.mark.parametrize("command", [["run"], ["serve"], ["bench", "decode"], ["trace"]])
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--tp 2 --pp 99", "--pp 99"),
        ("--tp 1 --nnodes 1 --node-rank 1", "--node-rank 1: must be 0 to 0"),
        ("--node-rank -1", "--node-rank -1"),
        ("--master-port 70000", "--master-port 70000"),
        ("--master-addr a,b", "--master-addr a,b: must be a host name or address"),
        ("--timeout 1e7", "--timeout 1e7"),
    ],
)
def test_places_of_ranks_are_checked_before_anything_starts(command, words, line, capsys):
    assert run([*command, "embedded", *words.split()]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "serve", "trace"])
def test_one_machine_is_not_given_more_ranks_than_it_can_have(command, capsys):
    assert run([command, "embedded", "--dp", "65"]) == 2
    assert "--dp 65: 65 ranks on one machine, at most 64" in capsys.readouterr().err
