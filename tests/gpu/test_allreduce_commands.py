"""``weft bench allreduce`` and ``weft calibrate`` on GPUs, as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from weft.fabric import load
from weft.fabric.fingerprint import fingerprint
from weft.kernels.selection import GroupShape

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="fewer than 2 GPUs"
    ),
]


def weft(*words: str, home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "weft", *words],
        env=os.environ | {"XDG_CONFIG_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def bench(home: Path, *words: str) -> dict:
    shape = () if "--nodes" in words else ("--nodes", "1")
    per_node = "1" if "--nodes" in words else "2"
    options = ("--device", "cuda", "--rounds", "5", "--format", "json")
    ranks = ("--ranks-per-node", per_node)
    return json.loads(weft("bench", "allreduce", *words, *shape, *ranks, *options, home=home))


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_peers_and_kernels_are_measured_and_right(mode: str, tmp_path: Path) -> None:
    found = bench(tmp_path, "--sizes", "1000,8K,1M", "--mode", mode, "--dtypes", "bfloat16,float32")
    names = {row["algorithm"] for row in found["rows"]}
    assert {"backend", "auto", "one_shot", "two_shot", "fused_rms_norm"} <= names
    assert {row["bytes"] for row in found["rows"]} == {1000, 8192, 1 << 20}
    assert sum(row["wrong"] for row in found["rows"]) == 0
    assert found["machine"]["mode"] == mode


@pytest.mark.parametrize("transport", ["peer", "nvshmem", "tcp"])
def test_virtual_nodes_are_measured(transport: str, tmp_path: Path) -> None:
    found = bench(tmp_path, "--nodes", "2", "--transports", transport, "--sizes", "8K,32K,256K,5M")
    if found["machine"]["unavailable"]:
        pytest.skip(found["machine"]["unavailable"])
    topology = GroupShape(num_ranks=2, nodes=2, transport=transport)
    assert {*topology.algorithms, "auto"} <= {row["algorithm"] for row in found["rows"]}
    assert sum(row["wrong"] for row in found["rows"]) == 0


def test_calibrate_writes_what_auto_reads(tmp_path: Path) -> None:
    weft("calibrate", "--device", "cuda", "--seconds", "10", home=tmp_path)
    fabric = load(tmp_path / "weft" / "fabric-cuda.json")
    assert fabric.uses_nccl
    assert fabric.fingerprint == fingerprint()
    assert {table.algorithm for table in fabric.tables} == {"backend", "one_shot", "two_shot"}
    assert {table.dtype for table in fabric.tables} == {"bfloat16", "float32", "float16"}
    rows = weft("doctor", "--format", "json", home=tmp_path)
    assert "calibrated" in {row["state"] for row in json.loads(rows)}
    found = bench(tmp_path, "--sizes", "8K,16M", "--algorithms", "auto")
    assert sum(row["wrong"] for row in found["rows"]) == 0
