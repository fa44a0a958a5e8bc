"""``weft bench allreduce`` and ``weft calibrate`` on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from weft.allreduce.algorithms import PROGRAMS
from weft.fabric import load
from weft.fabric.fingerprint import fingerprint


def weft(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "weft", *words],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(cwd)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_bench_measures_all_algorithms_and_finds_no_wrong_value(tmp_path):
    done = weft(
        "bench", "allreduce", "--nodes", "2", "--ranks-per-node", "2", "--sizes", "100,8K",
        "--dtypes", "float32,bfloat16", "--rounds", "5", "--format", "json", "-o", str(tmp_path),
        "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert "All-reduce" in (tmp_path / "report.html").read_text()
    names = {"backend", "auto", *PROGRAMS}
    rows = document["rows"]
    assert {(row["algorithm"], row["bytes"], row["dtype"]) for row in rows} == {
        (name, size, dtype)
        for name in names
        for size in (100, 8192)
        for dtype in ("float32", "bfloat16")
    }
    for row in rows:
        assert row["wrong"] == 0
        assert 0 < row["min_us"] <= row["median_us"] <= row["max_us"]
        assert row["busbw_gb_s"] == row["algbw_gb_s"] * 1.5
    assert document["machine"]["ranks"] == 4


def test_calibrate_writes_a_fabric_of_this_machine(tmp_path):
    done = weft("calibrate", "--name", "here", "--seconds", "1", "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    fabric = load(tmp_path / "weft" / "fabric.json")
    assert fabric.name == "here"
    assert fabric.fingerprint == fingerprint()
    assert {(table.ranks, table.nodes) for table in fabric.tables} == {
        (2, 1),
        (2, 2),
        (4, 1),
        (4, 2),
    }
    assert {table.algorithm for table in fabric.tables} == {"backend", *PROGRAMS}
    assert not fabric.uses_nccl
    assert "inter latency_us" in done.stdout
    assert "measured in" in done.stderr
