"""Exports of Nsight Systems, made here by the documented schema of the export."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from weft.cli import main
from weft.errors import FileFormatError
from weft.importer.importing import import_traces
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec

SCHEMA = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL,
  deviceId INTEGER NOT NULL, contextId INTEGER, streamId INTEGER, correlationId INTEGER,
  globalPid INTEGER, demangledName INTEGER NOT NULL, shortName INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL,
  eventClass INTEGER, globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL,
  returnValue INTEGER);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER, text TEXT,
  globalTid INTEGER, domainId INTEGER, textId INTEGER);
"""
ALL_REDUCE = (
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<(unsigned long)4096>)"
)
GATHER = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<(unsigned long)4096>)"
NAMES = [
    ALL_REDUCE,
    GATHER,
    "void gemm()",
    "cudaLaunchKernelExC_v11060",
    "ncclAllReduce",
    "cudaMalloc_v3020",
]


def write_export(path: Path, *, steps: int = 3, layers: int = 32, devices: int = 1) -> Path:
    """A tensor-parallel run: labels by NVTX, kernels that run long after their launch."""
    database = sqlite3.connect(path)
    database.executescript(SCHEMA)
    database.executemany("INSERT INTO StringIds VALUES (?, ?)", enumerate(NAMES))
    now, correlation = 1_000_000_000, 1
    for step in range(steps):
        label = (
            "execute_context_1(128)_generation_0(0)"
            if not step
            else "execute_context_0(0)_generation_1(1)"
        )
        begin = now
        kinds = [0, *[2, 0, 2, 0] * layers, 1]
        for kind in kinds:
            database.execute(
                "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, 0, 7, ?, 3, 0)",
                (now, now + 3_000, correlation),
            )
            late = now + 50_000_000
            database.execute(
                "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, 1, 7, ?, 1, ?, ?)",
                (late, late + 4_500, correlation % devices, correlation, kind, kind),
            )
            now, correlation = now + 10_000, correlation + 1
        database.execute(
            "INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, ?, 7, 0, NULL)", (begin - 1_000, now, label)
        )
        now += 100_000
    database.commit()
    database.close()
    return path


def test_an_export_conforms_like_a_trace(tmp_path: Path) -> None:
    path = write_export(tmp_path / "rank1.sqlite")
    result = import_traces([path], model=load_spec("llama-3.1-8b"), layout=Layout(tp=2))
    rows = {(r.row.phase, r.row.op, r.row.input_shape): r.row.count for r in result.rows}
    assert rows == {
        ("prefill", "all_reduce", (128, 4096)): 65,
        ("decode", "all_reduce", (1, 4096)): 130,
        ("prefill", "all_gather", (1, 64128)): 1,
        ("decode", "all_gather", (1, 64128)): 2,
    }
    assert "all 4 rows that are there are as expected" in result.conformance.reason
    assert result.rows[0].row.duration_us is not None
    assert result.rows[0].row.duration_us.median == 4.5
    assert list(result.traces) == [1]


def test_a_missing_layer_is_found(tmp_path: Path) -> None:
    path = write_export(tmp_path / "rank0.sqlite", layers=31)
    result = import_traces([path], model=load_spec("llama-3.1-8b"), layout=Layout(tp=2))
    assert result.conformance.conforms is False


def test_ranges_of_nccl_are_the_calls_of_their_kernels(tmp_path: Path) -> None:
    path = write_export(tmp_path / "rank0.sqlite", steps=1, layers=1)
    database = sqlite3.connect(path)
    kernel = "SELECT correlationId FROM CUPTI_ACTIVITY_KIND_KERNEL WHERE demangledName = 0"
    for (correlation,) in database.execute(kernel).fetchall():
        query = "SELECT start, end FROM CUPTI_ACTIVITY_KIND_RUNTIME WHERE correlationId = ?"
        start, end = database.execute(query, (correlation,)).fetchone()
        database.execute(
            "INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, NULL, 7, 1, 4)", (start - 500, end + 500)
        )
    database.commit()
    result = import_traces([path], layout=Layout(tp=2))
    assert {(r.row.op, r.row.count) for r in result.rows} == {("all_reduce", 3), ("all_gather", 1)}


def test_what_is_no_export_is_refused_by_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileFormatError, match="kernels of 2 GPUs in one export"):
        import_traces([write_export(tmp_path / "two.sqlite", steps=1, devices=2)])
    sqlite3.connect(tmp_path / "other.sqlite").execute("CREATE TABLE a (b)").connection.commit()
    with pytest.raises(FileFormatError, match="not an export of Nsight Systems"):
        import_traces([tmp_path / "other.sqlite"])
    (tmp_path / "run.nsys-rep").write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main.run(["import", str(tmp_path / "run.nsys-rep")]) == 2
    captured = capsys.readouterr()
    assert "nsys export --type sqlite --output run.sqlite run.nsys-rep" in captured.err
    assert captured.err.count("\n") == 1


def test_the_nsys_program_is_asked_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = write_export(tmp_path / "ready.sqlite", steps=1)
    program = tmp_path / "nsys"
    program.write_text(f'#!/bin/sh\n/bin/cp {ready} "$5"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "rank0.nsys-rep").write_bytes(b"x")
    result = import_traces([tmp_path / "rank0.nsys-rep"], layout=Layout(tp=2))
    assert result.traces[0].path.name == "rank0.nsys-rep"
    assert sum(row.row.count for row in result.rows) == 66
