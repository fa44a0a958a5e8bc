"""``weft import`` on the command line: formats, exit codes, files it writes, bad input."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trace_builder import Batch, Run, write_run, write_trace
from weft.cli import main
from weft.cli.import_ import import_
from weft.errors import FileFormatError, LayoutError
from weft.importer.importing import import_traces
from weft.vocabulary.layout import Layout

TRACES = Path(__file__).parents[2] / "data" / "traces"
CPU_TP2 = [str(TRACES / f"vllm_cpu_tp2_rank{rank}.json.gz") for rank in (0, 1)]
H200 = str(TRACES / "vllm_h200_tp2_rank1.json.gz")

if "import" not in {command.name for command in main.app.registered_commands}:
    main.app.command("import")(import_)


def weft(*arguments: str) -> int:
    return main.run(["import", *arguments])


def test_table_names_clock_bound_and_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert weft(*CPU_TP2) == 0
    output = capsys.readouterr().out
    assert "clock of rank 1 against rank 0" in output
    assert "consistent with itself: all 4 rows agree" in output
    assert weft(H200, "--model", "llama-3.1-8b", "--format", "table") == 0
    output = capsys.readouterr().out
    assert "bound upper" in output
    assert "partial: rank 0 of 2 not given" in output


def test_json_is_the_schedule_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert weft(*CPU_TP2, "--format", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "weft.schedule/1"
    assert document["source"] == "import"
    assert document["unexplained"] == []
    row = document["collectives"][0]
    assert row["count"] == 65
    assert set(row["duration_us"]) == {"min", "median", "max", "total"}
    assert row["busbw_gb_s"] == row["algbw_gb_s"]
    assert document["conformance"]["counts"] == {"equal": 4}
    assert document["totals"]["by_op"]["all_reduce"] == 65 * 65536 + 975 * 512
    assert len(document["time_share"]) == 16
    assert {entry["rank"] for entry in document["waiting"]} == {0, 1}
    assert {event["rank"] for event in document["timeline"]} == {0, 1}


def test_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert weft(*CPU_TP2, "--format", "csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["count"] for row in rows] == ["65", "1", "975", "15"]
    assert rows[2]["input"] == "[1,256]"


def test_exit_1_where_it_does_not_conform(capsys: pytest.CaptureFixture[str]) -> None:
    assert weft(H200, "--model", "llama-2-13b") == 1
    captured = capsys.readouterr()
    assert "does not conform" in captured.out
    assert "num_layers: the trace shows 32, llama-2-13b has 40" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "engine", ["auto", "vllm", "vllm-cpu", "vllm-v0", "sglang", "trtllm", "torch"]
)
def test_every_engine_choice(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    code = weft(*CPU_TP2, "--engine", engine, "--format", "json")
    document = json.loads(capsys.readouterr().out)
    resolved = {"auto": "vllm-cpu", "vllm": "vllm-cpu"}.get(engine, engine)
    assert document["engine"] == resolved
    assert code == (1 if engine == "vllm-v0" else 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.json"], "cannot read it"),
        ([str(Path(__file__))], "not a PyTorch profiler trace"),
        ([H200, "--engine", "tgi"], "--engine tgi: unknown; choose one of auto"),
        ([H200, "--model", "lama"], "not a built-in name"),
        ([H200, "--layout", "tp"], "write it as"),
        ([H200, "--layout", "1"], "--layout 1: has 1 ranks, but the traces are of 2"),
        ([H200, "--jobs", "0"], "--jobs"),
        ([H200, H200], "give each rank of one run once"),
        ([H200, CPU_TP2[0]], "ranks of different runs (backend nccl and gloo)"),
        ([], "FILES"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert weft(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words.lower() in captured.err.lower()


def test_layout_option_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert weft(*CPU_TP2, "--layout", "tp2", "--jobs", "1") == 0
    capsys.readouterr()
    assert weft(*CPU_TP2, "--layout", "pp2", "--format", "json") == 2
    assert "those of tp2" in capsys.readouterr().err


def test_two_processes_read_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert weft(*CPU_TP2, "--jobs", "1", "--format", "json") == 0
    alone = json.loads(capsys.readouterr().out)
    assert weft(*CPU_TP2, "--jobs", "2", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == alone


def test_truncated_file_is_partial_and_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rank0.json.gz"
    path.write_bytes(Path(CPU_TP2[0]).read_bytes()[:12_000])
    assert weft(str(path), CPU_TP2[1]) == 0
    output = capsys.readouterr().out
    assert "partial: rank0.json.gz breaks off" in output
    assert "not checked: the traces are partial" in output
    assert weft(str(path), "--format", "csv") == 0
    assert "partial" in capsys.readouterr().err
    assert weft(str(path), "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["partial"] is True


def test_a_trace_of_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::add", "ts": 1, "dur": 1}
    path = write_trace({"traceEvents": [event]}, tmp_path / "one.json")
    assert weft(str(path)) == 2
    assert "a trace of one process, without a collective" in capsys.readouterr().err


def run_of(decoding: int, style: Any = "shared-memory") -> Run:
    batches = (Batch(context_requests=1, context_tokens=4), *[Batch(decoding=1)] * decoding)
    return Run(layers=(2,), hidden=64, vocab=512, tp=2, pp=1, batches=batches, style=style)


def test_ranks_of_different_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = write_run(run_of(3), tmp_path / "a")[0]
    other = run_of(3)
    other = Run(**{**other.__dict__, "batches": (*other.batches[:2], Batch(decoding=5))})
    second = write_run(other, tmp_path / "b")[1]
    with pytest.raises(FileFormatError, match=r"different runs \(their steps differ: 4 and 3"):
        import_traces([first, second])


def test_ranks_whose_profilers_started_apart(tmp_path: Path) -> None:
    """The rank that saw fewer steps is paired from the end; its rows differ, and that is said."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = write_run(run_of(4), tmp_path / "a")[0]
    late = Run(**{**run_of(4).__dict__, "batches": run_of(4).batches[2:]})
    second = write_run(late, tmp_path / "b")[1]
    result = import_traces([first, second])
    paired = [call for call in result.traces[0].calls if call.transfer_us is not None]
    assert {call.step for call in paired} == {2, 3, 4}
    assert result.conformance.conforms is None
    assert result.conformance.verdict == "cannot tell"
    assert "rank1.json lacks 2 of the 5 steps of rank0.json" in result.conformance.reason


def test_ranks_without_a_number(tmp_path: Path) -> None:
    paths = write_run(run_of(1), tmp_path)
    bare = json.loads(paths[0].read_bytes())
    del bare["distributedInfo"]
    write_trace(bare, tmp_path / "x.json")
    write_trace(bare, tmp_path / "trace-rank-1.json")
    alone = import_traces([tmp_path / "x.json"], layout=Layout(tp=2))
    assert "all 4 rows that are there are as expected" in alone.conformance.reason
    with pytest.raises(FileFormatError, match="does not say its rank"):
        import_traces([tmp_path / "x.json", tmp_path / "trace-rank-1.json"])


def test_ranks_that_no_layout_holds(tmp_path: Path) -> None:
    paths = write_run(run_of(1), tmp_path)
    trace = json.loads(paths[1].read_bytes())
    trace["distributedInfo"] |= {"world_size": 3, "pg_config": []}
    for event in trace["traceEvents"]:
        if event["name"].startswith("_C::shm_all"):
            event["args"]["Group size"] = 2
    write_trace(trace, paths[1])
    with pytest.raises(FileFormatError, match="world size 2 and 3"):
        import_traces(paths)
    with pytest.raises(LayoutError):
        import_traces([paths[1]], layout=Layout())


@pytest.mark.parametrize("name", ["out.json", "out.json.gz"])
def test_perfetto_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / name
    assert weft(H200, "--perfetto", str(path)) == 0
    capsys.readouterr()
    content = path.read_bytes()
    events = json.loads(gzip.decompress(content) if name.endswith(".gz") else content)[
        "traceEvents"
    ]
    calls = [event for event in events if event["name"] == "all_reduce"]
    assert len(calls) == 2080
    assert {event["ph"] for event in events} == {"M", "X"}
    lanes = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert lanes == {"steps", "communication", "compute", "host communication"}
    assert all(event["ts"] >= 0 and event.get("dur", 0) >= 0 for event in events)
    assert {event["name"] for event in events} >= {"prefill", "decode", "empty", "compute"}


def test_report_is_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.html"
    assert weft(*CPU_TP2, "--report", str(path)) == 0
    capsys.readouterr()
    page = path.read_text(encoding="utf-8")
    for title in ("Message sizes", "Waiting by rank", "Timeline of one step", "Conformance"):
        assert title in page
    assert 'src="http' not in page


def test_importing_does_not_import_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from weft.importer.importing import import_traces; "
        "import_traces([Path(p) for p in sys.argv[1:]]); "
        "print(sorted({'torch', 'jinja2', 'transformers'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, *CPU_TP2], check=True, capture_output=True, timeout=60
    ).stdout
    assert output.strip() == b"[]"


def test_documents_beside_the_traces_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What weft import, a recorder and a report wrote into the folder; not a file that is named."""
    for file in CPU_TP2:
        shutil.copy(file, tmp_path)
    capsys.readouterr()
    assert weft(str(tmp_path), "--format", "json") == 0
    (tmp_path / "import.json").write_text(capsys.readouterr().out)
    (tmp_path / "run.json").write_text('{"command": "serve", "log": []}')
    assert weft(str(tmp_path), "--format", "json") == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert f"{tmp_path}: left out import.json, run.json, no trace" in notes
    assert weft(str(tmp_path / "run.json")) == 2
    (tmp_path / "rank3.json").write_text('{"traceEvents": [{"ph": ')
    assert weft(str(tmp_path)) == 2
    assert "rank3.json" in capsys.readouterr().err


def test_a_folder_of_folders_names_the_one_with_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = tmp_path / "run" / "profile"
    inner.mkdir(parents=True)
    for rank in range(2):
        (inner / f"rank{rank}.json").write_text("{}")
    (tmp_path / "also").mkdir()
    (tmp_path / "also" / "one.json").write_text("{}")
    assert main.run(["import", str(tmp_path)]) == 2
    assert f"name {inner}" in capsys.readouterr().err


def test_a_pattern_after_against_says_how_to_name_many_files(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The shell makes the second file of the pattern one of the run itself."""
    one, two = CPU_TP2
    assert main.run(["import", str(one), str(two), "--against", str(one), str(two)]) == 2
    assert "--against" in capsys.readouterr().err
