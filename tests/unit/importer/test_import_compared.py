"""What would be gained and two imports side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trace_builder import Batch, Run, write_run
from weft.cli import main
from weft.importer.compared import changes
from weft.importer.importing import import_traces

TRACES = Path(__file__).parents[2] / "data" / "traces"
CPU_TP2 = sorted(TRACES.glob("vllm_cpu_tp2_rank*.json.gz"))


def run_of(layers: int, decoding: int = 3) -> Run:
    batches = (Batch(context_requests=1, context_tokens=8), *[Batch(decoding=1)] * decoding)
    return Run(
        layers=(layers,), hidden=64, vocab=512, tp=2, pp=1, batches=batches, style="shared-memory"
    )


def test_what_changed_between_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, run in (("before", run_of(3)), ("after", run_of(2, decoding=5))):
        (tmp_path / name).mkdir()
        write_run(run, tmp_path / name)
    before, after = (import_traces(sorted((tmp_path / n).iterdir())) for n in ("before", "after"))
    found = {(c.row.phase, c.row.op): c for c in changes(before, after)}
    changed = found["decode", "all_reduce"]
    assert (changed.counts, changed.per_step, changed.is_alike) == ((21, 25), (7.0, 5.0), False)
    alike = found["decode", "all_gather"]
    assert (alike.counts, alike.per_step, alike.is_alike) == ((3, 5), (1.0, 1.0), True)
    arguments = ["import", str(tmp_path / "after"), "--against", str(tmp_path / "before")]
    assert main.run(arguments) == 0
    output = capsys.readouterr().out
    assert "changed: decode all_reduce [1, 64] over tp2, stage 0: 21 -> 25 calls" in output
    assert main.run([*arguments, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["against"]["changed"] == 2
    report = tmp_path / "report.html"
    assert main.run([*arguments, "--report", str(report)]) == 0
    text = report.read_text()
    assert "2 of 4 kinds of call changed" in text
    assert "21 -&gt; 25 calls" in text


def test_a_step_is_told_apart_into_waiting_and_transfer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = import_traces(CPU_TP2, best=lambda _: ("one_shot", 1.0))
    gain = next(g for g in result.gains if g.phase == "decode")
    assert gain.steps == 15
    assert gain.waiting_us is not None
    assert gain.faster_us is not None
    assert 0 < gain.waiting_us < gain.communication_us < gain.step_us
    assert 0 < gain.faster_us < gain.communication_us - gain.waiting_us
    assert gain.waits_for in (0, 1)
    assert main.run(["import", *map(str, CPU_TP2), "--fabric", "h200-nvlink"]) == 0
    assert main.run(["import", *map(str, CPU_TP2)]) == 0
    assert "ms a step of decode" in capsys.readouterr().out


def test_one_rank_alone_cannot_tell_its_waiting() -> None:
    (gain,) = [g for g in import_traces(CPU_TP2[:1]).gains if g.phase == "decode"]
    assert (gain.waiting_us, gain.waits_for, gain.faster_us) == (None, None, None)
    result = import_traces(CPU_TP2)
    assert not result.replicas
