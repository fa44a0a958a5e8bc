"""A real vLLM on this machine's processors: run, traced, imported, held against its schedule."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.cli import main
from weft.cli.import_ import import_
from weft.importer.imported import ImportedTrace
from weft.importer.importing import import_traces
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]

if "import" not in {command.name for command in main.app.registered_commands}:
    main.app.command("import")(import_)


def traces(folder: Path) -> list[Path]:
    return sorted(folder.glob("rank*.pt.trace.json.gz"))


def imported(folder: Path) -> ImportedTrace:
    return import_traces(traces(folder), model=load_spec(str(folder / "model")))


def test_tensor_parallel_with_mixed_steps(recorded: dict[str, Path]) -> None:
    result = imported(recorded["tp2"])
    assert result.schedule.engine == "vllm-cpu"
    assert result.schedule.layout == Layout(tp=2)
    assert result.conformance.conforms, result.conformance.reason
    assert not result.unexplained
    steps = result.traces[0].busy_steps
    assert {"prefill", "mixed", "decode"} >= {step.label.phase for step in steps} >= {"decode"}
    all_reduces = [row.row for row in result.rows if row.row.op == "all_reduce"]
    assert sum(row.count for row in all_reduces) == (2 * 5 + 1) * len(steps)
    tokens = sum(row.count * (row.input_shape or (0,))[0] for row in all_reduces)
    assert tokens == (2 * 5 + 1) * (40 + 7 + 100 + 4 + 8 + 2)
    assert all(row.provenance == "shape" and row.wait_us is not None for row in all_reduces)
    assert result.clocks[1].is_consistent
    assert result.clocks[1].low_us is not None
    assert result.clocks[1].low_us <= 0 <= (result.clocks[1].high_us or -1)


def test_pipeline(recorded: dict[str, Path]) -> None:
    result = imported(recorded["pp2"])
    assert result.schedule.layout == Layout(pp=2)
    assert result.conformance.conforms, result.conformance.reason
    assert not result.unexplained
    sent = [row.row for row in result.rows if row.row.op == "send"]
    received = [row.row for row in result.rows if row.row.op == "recv"]
    assert [(r.phase, r.count, r.input_shape) for r in sent] == [
        (r.phase, r.count, r.input_shape) for r in received
    ]
    tokens = sum(row.count * (row.input_shape or (0,))[0] for row in sent)
    assert tokens == 2 * (20 + 12 + 3 + 3)
    headers = sum(calls.count for calls in result.control if calls.op == "send")
    assert headers == len(result.traces[0].busy_steps)


def test_command_line(
    recorded: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded["tp2"]
    files = [str(path) for path in traces(folder)]
    perfetto, report = str(tmp_path / "p.json.gz"), str(tmp_path / "report.html")
    options = ["--model", str(folder / "model"), "--perfetto", perfetto, "--report", report]
    assert main.run(["import", *files, *options]) == 0
    assert "conforms: all" in capsys.readouterr().out
    assert main.run(["import", *files, "--model", "llama-3.2-1b"]) == 1
    assert "num_layers: the trace shows 5, llama-3.2-1b has 16" in capsys.readouterr().err
