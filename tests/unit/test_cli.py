"""The command line: bad input is one line and exit code 2; formats; help with examples."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from weft.cli import study
from weft.cli.main import app, run
from weft.errors import LayoutError, UserError, WorkloadError
from weft.vocabulary.files import write_file
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["predict", "llama-9"], "llama-9"),
        (["predict", "llama-3.1-8b", "--tp", "3"], "--tp 3"),
        (["predict", "llama-3.1-8b", "--tp", "two"], "two"),
        (["predict", "llama-3.1-8b", "--pp", "33"], "--pp 33"),
        (["predict", "llama-3.1-8b", "--tp", "2", "--sp", "4"], "--sp 4"),
        (["predict", "llama-3.1-8b", "--engine", "tgi"], "tgi"),
        (["predict", "llama-3.1-8b", "--prompt", "0"], "--prompt 0"),
        (["serve", "embedded", "--drain", "nan"], "--drain nan"),
        (["serve", "embedded", "--drain", "inf"], "--drain inf"),
        (["serve", "embedded", "--port", "65536"], "--port 65536"),
        (["run", "embedded", "--timeout", "nan"], "positive number of seconds"),
        (["run", "embedded", "--timeout", "0"], "positive number of seconds"),
        (["run", "embedded", "--timeout", "inf"], "positive number of seconds"),
        (
            ["run", "embedded", "--tp", "2", "--nnodes", "2", "--master-port", "0"],
            "--master-port 0",
        ),
        (["plan", "llama-3.1-8b", "--gpus", "8", "--batch", "100000000"], "--batch 100000000"),
        (["bench", "decode", "embedded", "--case", "1x999999"], "--case 1x999999"),
        (["predict", "llama-3.1-8b", "--nodes", "0"], "--nodes 0"),
        (["predict", "llama-3.1-8b", "--accelerator", "h200-sxm", "--rate", "nan"], "--rate nan"),
        (["predict", "llama-2-7b", "--prompt", "4096"], "4096 positions"),
        (["predict", "llama-3.1-8b", "--workload", "big"], "big"),
        (["predict", "llama-3.1-8b", "--format", "xml"], "xml"),
        (["predict", "llama-3.1-8b", "--pp", "2", "--stage-layers", "1,x"], "1,x"),
        (["predict", "llama-3.1-8b", "--pp", "2", "--stage-layers", "30,1"], "30,1"),
        (["predict", "/nonexistent/model"], "/nonexistent/model"),
        (["trace", "qwen2.5-7b", "--tp", "8", "--dry-run"], "--tp 8"),
        (["run", "embedded", "--ids", "1,b"], "1,b"),
        (["run", "embedded", "--text", "a", "--batch", "4"], "--batch 4"),
        (["run", "embedded", "--ids", "1", "--prompt", "4"], "--prompt 4"),
        (["run", "embedded", "--ids", "999999"], "999999"),
        (["run", "embedded", "--prompt", "9000"], "8192"),
        (["run", "embedded", "--prompt", "9" * 30], "positions of embedded"),
        (["run", "embedded", "--decode", "9" * 30], "positions of embedded"),
        (["run", "embedded", "--temperature", "-1"], "--temperature"),
        (["run", "embedded", "--top-p", "0"], "--top-p"),
        (["run", "embedded", "--weights", "none"], "none"),
        (["run", "embedded", "--device", "tpu"], "tpu"),
        (["run", "embedded", "--all-reduce", "mpi", "--decode", "1"], "mpi"),
        (["run", "embedded", "--ep", "2"], "--ep 2"),
        (["study", "--layouts", "tp2,xx"], "xx"),
        (["study", "--layouts", "tp3"], "tp 3: does not divide"),
        (["report", "/nonexistent.json"], "/nonexistent.json"),
        (["frobnicate"], "frobnicate"),
        (["predict"], "model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(words, named, capsys):
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert named in err


def test_no_gpu_is_exit_code_three(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert run(["run", "embedded", "--device", "cuda"]) == 3
    assert "--device cpu" in capsys.readouterr().err


def test_a_config_without_a_field(tmp_path, capsys):
    """It takes transformers' value, here 32 heads, which 8 elements cannot be split between."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    assert run(["predict", str(tmp_path)]) == 2
    assert "head_dim is 0" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": 3}', "\udcff"])
def test_a_damaged_config(tmp_path, capsys, content):
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert run(["models", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_missing_tensor_and_wrong_shape(tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    config = json.loads((checkpoint / "config.json").read_text())
    for change, word in (
        ({"num_hidden_layers": 6}, "model.layers.5"),
        ({"intermediate_size": 64}, "gate_proj"),
        ({"attention_bias": True}, "bias"),
    ):
        (checkpoint / "config.json").write_text(json.dumps(config | change))
        assert run(["run", str(checkpoint), "--ids", "1", "--decode", "1"]) == 2
        assert word in capsys.readouterr().err


@pytest.mark.parametrize("output_format", ["json", "csv", "table"])
def test_formats_hold_the_same_rows(output_format, capsys):
    assert (
        run(
            [
                "predict",
                "llama-2-13b",
                "--tp",
                "4",
                "--engine",
                "vllm-v0",
                "--format",
                output_format,
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    if output_format == "json":
        counts = [row["count"] for row in json.loads(out)["collectives"]]
    elif output_format == "csv":
        counts = [int(row["count"]) for row in csv.DictReader(io.StringIO(out))]
    else:
        counts = [int(n) for n in ("81", "1", "10287", "127") if f"{int(n):,}" in out]
    assert counts == [81, 1, 10287, 127]


def commands():
    from typer.main import get_command

    def walk(command, path):
        yield path, command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*path, name])

    return [(path, command) for path, command in walk(get_command(app), []) if path]


@pytest.mark.parametrize(("path", "command"), commands(), ids=str)
def test_every_command_has_help_with_an_example(path, command, capsys):
    assert run([*path, "--help"]) == 0
    out = capsys.readouterr().out
    if not getattr(command, "commands", None) or command.callback:
        assert f"weft {path[0]}" in out.split("Usage:")[1]


def test_run_prints_tokens_and_times(capsys):
    words = ["run", "embedded", "--text", "Hello", "--decode", "3", "--ignore-eos"]
    assert run([*words, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["completions"][0]["token_ids"]) == 3
    assert document["e2e_ms"] >= document["ttft_ms"] > 0
    assert run(words) == 0
    assert "TPOT" in capsys.readouterr().out


def test_doctor_and_models(capsys):
    assert run(["doctor", "--format", "json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert {"torch", "gloo", "nccl"} <= names
    assert run(["models", "--format", "csv"]) == 0
    assert "llama-3.1-405b" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["run"], ["serve"], ["bench", "decode"]])
def test_an_unknown_all_reduce_is_named_before_anything_starts(command, capsys):
    assert run([*command, "embedded", "--all-reduce", "fast"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "weft: error: --all-reduce fast: choose one of auto, weft, library\n"
    assert captured.out == ""


def test_an_output_without_a_name_is_a_user_error():
    with pytest.raises(UserError, match="not a regular file; name another"):
        write_file(Path(), "")


def test_a_model_larger_than_the_machine_is_refused_at_once(capsys, monkeypatch):
    monkeypatch.setattr("weft.engine.cache_size.physical_bytes", lambda: 10**9)
    words = ["run", "llama-3.1-8b", "--weights", "dummy", "--device", "cpu", "--decode", "2"]
    assert run(words) == 3
    captured = capsys.readouterr()
    assert "needs about 17 GB" in captured.err
    assert captured.out == ""


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for command in (["study"], ["study", "engines"]):
        assert run([*command, "--output", str(file)]) == 2
        assert f"--output {file}: is not a folder" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder that nobody can write to")
def test_a_folder_that_nobody_can_write_to_is_named_before_anything_runs(capsys):
    assert run(["study", "--output", "/proc"]) == 2
    assert "--output /proc: cannot write there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "embedded", "--prompt", "0"], "--prompt 0: must be"),
        (["run", "embedded", "--nnodes", "0"], "--nodes 0: must be"),
        (["run", "embedded", "--stop-id", "-1"], "--stop-id -1: outside the vocabulary"),
        (["plan", "embedded", "--gpus", "0"], "--gpus 0: must be"),
        (["study", "--decode", "-3"], "--decode -3: must be"),
        (["predict", "embedded", "--sp", "4", "--tp", "2"], "set --sp 1 or --sp 2 (with --tp 2)"),
    ],
)
def test_an_argument_of_the_library_is_named_as_the_option_that_sets_it(words, line, capsys):
    assert run(words) == 2
    err = capsys.readouterr().err
    assert line in err
    assert "`" not in err


def test_the_library_speaks_of_arguments():
    with pytest.raises(LayoutError, match=r"^`stage_layers` 1,2: has 2 stages but `pp` is 1$"):
        Layout(stage_layers=(1, 2))
    for value in (0, 1.5, True, None, "2", float("nan")):
        with pytest.raises(WorkloadError, match=r"^`prompt_tokens` .*whole number"):
            Workload(prompt_tokens=value)


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no full device")
@pytest.mark.parametrize(
    "words",
    [
        "models",
        "models --format json",
        "predict llama-3.1-8b --tp 2 --format csv",
        "--help",
        "run -h",
    ],
)
def test_a_full_disk_under_stdout_is_one_line(words):
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "weft", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr == "weft: error: cannot write to stdout: No space left on device\n"


def test_a_reader_that_has_gone_is_no_error_and_does_not_stop_the_command():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "weft", "models", "--format", "json"],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_file_is_whole_or_the_one_before(tmp_path):
    path = tmp_path / "result.json"
    write_file(path, {"a": 1})
    (tmp_path / "link.json").symlink_to(path)
    for content in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_file(path, content)
    write_file(tmp_path / "link.json", b'{"a": 2}')
    assert json.loads(path.read_text()) == {"a": 2}
    with pytest.raises(UserError, match="does not exist"):
        write_file(tmp_path / "missing" / "result.json", "")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.json", "result.json"]


def test_a_study_ends_with_what_was_learnt_and_three_commands():
    def part(tp: int, volume: float, e2e_ms: float) -> dict:
        schedules = {"run": {"totals": {"volume_bytes": volume}}}
        times = {"ttft_ms": 1.0, "tpot_ms": 1.0, "e2e_ms": e2e_ms}
        rows = [{"verdict": "equal"}] * tp
        return times | {"layout": {"tp": tp}, "schedules": schedules, "rows": rows}

    document = {"layouts": [part(1, 0, 30), part(2, 4e6, 20)], "published": [{"rows": [{}, {}]}]}
    text = "\n".join(study._learnt(document))
    assert "tp2 was fastest here: 20 ms" in text
    assert "1 sends least and tp2 most" in text
    assert len([line for line in text.splitlines() if line.startswith("- ")]) == 5
    assert len([line for line in text.splitlines() if line.startswith("  weft ")]) == 3
