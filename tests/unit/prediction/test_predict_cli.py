"""The commands: predict with a machine, scoreboard, scaling, plan."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from weft.calibration.calibrate_accelerator import Sizes
from weft.cli import calibrate_accelerator, main, plan, predict
from weft.cli.default_group import app_with_default


@pytest.fixture(scope="module", autouse=True)
def commands() -> None:
    """Register what this suite needs where the main command line does not have it yet."""
    groups = {group.name for group in main.app.registered_groups}
    names = {command.name for command in main.app.registered_commands}
    if "predict" not in groups:
        kept = [item for item in main.app.registered_commands if item.name != "predict"]
        main.app.registered_commands[:] = kept
        main.app.add_typer(predict.app, name="predict")
    if "plan" not in names:
        main.app.command("plan")(plan.plan)


Run = Any
SMALL = Sizes(
    streams=((64, 64), (128, 128), (256, 256)),
    matmul=(32, 128, 128),
    copy_bytes=1 << 20,
    decode=((1, 32), (2, 64)),
    prefill_tokens=(16, 32),
    attention_heads=2,
    attention_head_dim=16,
)


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        code = main.run(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_schedule_is_the_default(weft: Run) -> None:
    code, out, _ = weft("predict", "llama-3.1-8b", "--tp", "2", "--format", "json")
    assert code == 0
    assert json.loads(out)["schema"] == "weft.schedule/1"
    assert weft("predict", "--tp", "2", "--format", "json", "llama-3.1-8b")[1] == out


def test_help_shows_the_model_command_and_names_the_others(weft: Run) -> None:
    code, out, _ = weft("predict", "--help")
    assert code == 0
    assert "Usage: weft predict" in out
    assert "--accelerator" in out
    assert "weft predict scoreboard" in out
    assert "MODEL [OPTIONS]" not in out.splitlines()[0]


LATENCY = ("predict", "llama-3.1-8b", "--tp", "2", "--engine", "vllm", "--accelerator", "h200-sxm")


def test_latency_in_every_format(weft: Run) -> None:
    code, out, _ = weft(*LATENCY)
    assert code == 0
    assert "tpot_ms" in out
    assert "vllm_custom" in out
    assert "--inputs lists them" in out
    assert "kernel durations" in weft(*LATENCY, "--inputs")[1]
    document = json.loads(weft(*LATENCY, "--format", "json")[1])
    assert document["schema"] == "weft.prediction/1"
    assert document["tpot_ms"]["low"] < document["tpot_ms"]["value"]
    rows = list(csv.DictReader(io.StringIO(weft(*LATENCY, "--format", "csv")[1])))
    assert [row["quantity"] for row in rows] == ["ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s"]


def test_a_model_that_does_not_fit_is_said_not_to(weft: Run) -> None:
    code, out, _ = weft("predict", "llama-3.1-405b", "--accelerator", "h200-sxm")
    assert code == 0
    assert out.startswith("DOES NOT FIT: needs 8")


def test_serving_at_a_rate(weft: Run) -> None:
    code, out, _ = weft(*LATENCY, "--workload", "chat", "--rate", "10", "--format", "json")
    assert code == 0
    document = json.loads(out)
    assert document["requests_per_s"] == pytest.approx(10, rel=0.15)
    assert document["ttft_ms"].keys() == {"value", "low", "high", "p50", "p99"}
    code, out, _ = weft(*LATENCY, "--concurrency", "4", "--requests", "8")
    assert code == 0
    assert "tokens/s, at most 4 decoding" in out
    code, out, err = weft(*LATENCY, "--rate", "1e9")
    assert (code, out) == (2, "")
    assert "answers at most" in err


def test_eight_bit_weights_and_another_fabric(weft: Run) -> None:
    options = ("--weights", "float8_e4m3fn", "--fabric", "h100-nvlink-ndr400", "--format", "json")
    document = json.loads(weft(*LATENCY, *options)[1])
    assert document["fabric"] == "h100-nvlink-ndr400"


ON_H200 = ("predict", "llama-3.1-8b", "--accelerator", "h200-sxm")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("predict", "llama-3.1-8b", "--fabric", "h200-nvlink"), "name a device (--accelerator)"),
        (("predict", "llama-3.1-8b", "--rate", "1"), "name a device (--accelerator)"),
        (("predict", "llama-3.1-8b", "--inputs"), "name a device (--accelerator)"),
        (("predict", "llama-3.1-8b", "--accelerator", "b300"), "built in are"),
        ((*ON_H200, "--burst", "4"), "--burst 4: is about a server"),
        ((*ON_H200, "--requests", "4"), "--requests 4: is about a server"),
        ((*ON_H200, "--concurrency", "4", "--burst", "3"), "--burst 3: is about requests that"),
        ((*ON_H200, "--trace", "x", "--shortest", "0.5"), "--shortest 0.5: a trace has lengths"),
        (("predict", "no-such-model"), "not a built-in name"),
        (("predict",), "Missing argument"),
        (("predict", "scaling", "--gpus", "4,x"), "--gpus 4,x"),
        (("predict", "scaling", "--gpus", "1"), "add larger numbers"),
        (("predict", "scaling", "--fabrics", "moon"), "not in the scale study"),
        (("predict", "scoreboard", "--silicon", "/nowhere.csv"), "cannot be read"),
        (("plan", "llama-3.1-8b", "--gpus", "0"), "--gpus 0"),
        (("plan", "llama-3.1-8b", "--gpus", "12"), "whole number of nodes"),
        (("plan", "llama-3.1-8b", "--explain", "tp3"), "not a layout of 4 GPUs"),
        (("plan", "llama-3.1-8b", "--set", "x=1"), "--set x=1"),
        (("plan", "llama-3.1-405b"), "more --gpus"),
        (("plan", "llama-3.1-8b", "--objective", "beauty"), "objective"),
        (("plan", "llama-3.1-8b", "--plot", "/nowhere/p.html"), "/nowhere/p.html"),
    ],
)
def test_mistakes_are_one_line_and_code_2(weft: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = weft(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_scoreboard(weft: Run, tmp_path: Path) -> None:
    code, out, _ = weft("predict", "scoreboard", "--rows", "--leave-one-out")
    assert code == 0
    assert "h200x4" in out
    assert "mean of absolute errors" in out
    document = json.loads(weft("predict", "scoreboard", "--format", "json")[1])
    assert document["schema"] == "weft.scoreboard/1"
    assert weft("predict", "scoreboard", "--format", "csv")[1].startswith("source,role,name")
    file = tmp_path / "s.csv"
    file.write_text(
        "id,backend,model_path,system,precision,mode,isl,osl,batch_size,tp_size,pp_size,"
        "silicon_ttft_ms,silicon_tpot_ms\n"
        "a,vllm,Qwen/Qwen3-32B,h200_sxm,fp8,agg,1024,256,8,2,1,100,9\n"
        "b,vllm,Qwen/Qwen3-32B,h200_sxm,fp8,agg,1024,256,8,4,1,80,7\n"
    )
    out = weft("predict", "scoreboard", "--silicon", str(file))[1]
    assert "qwen3-32b on h200_sxm" in out
    assert "answered: 2 of 2 public rows" in out
    assert "larger TP is faster" in out


def test_own_runs_are_compared(weft: Run, tmp_path: Path) -> None:
    row = {
        "engine": "vllm", "accelerator": "h200-sxm", "fabric": "h200-nvlink", "decode": 129,
        "model": "llama-3.1-8b", "layout": "tp2", "prompt": 128, "batch": 1,
        "ttft_ms": None, "tpot_ms": 3.474,
    }  # fmt: skip
    file = tmp_path / "mine.json"
    document = {"schema": "weft.measured/1", "method": "by hand", "rows": [row]}
    file.write_text(json.dumps(document))
    out = weft("predict", "scoreboard", "--runs", str(file), "--format", "csv")[1]
    assert sum(line.startswith("mine,test,") for line in out.splitlines()) == 1
    for damage in ({"schema": "x"}, {"rows": [{}]}, {"rows": 3}):
        file.write_text(json.dumps(document | damage))
        code, out, err = weft("predict", "scoreboard", "--runs", str(file))
        assert (code, out) == (2, "")
        assert "--runs" in err
    assert weft("predict", "scoreboard", "--runs", str(tmp_path / "none"))[0] == 2


def test_the_peers_answers_stand_beside(weft: Run, tmp_path: Path) -> None:
    file, peer = tmp_path / "s.csv", tmp_path / "peer.jsonl"
    file.write_text(
        "id,backend,model_path,system,precision,mode,isl,osl,batch_size,tp_size,pp_size,"
        "silicon_ttft_ms,silicon_tpot_ms\n"
        "a,vllm,Qwen/Qwen3-32B,h200_sxm,fp8,agg,1024,256,8,2,1,100,9\n"
    )
    peer.write_text('{"id": "a", "ttft_ms": 1.0, "tpot_ms": 2.0}\n')
    words = ("predict", "scoreboard", "--peer", str(peer), "--silicon", str(file))
    document = json.loads(weft(*words, "--every", "1", "--format", "json")[1])
    assert [row["peer"] for row in document["rows"][-2:]] == [1.0, 2.0]


def test_scaling(weft: Run) -> None:
    words = ("predict", "scaling", "--models", "llama-3.1-70b", "--gpus", "16,64")
    code, out, _ = weft(*words, "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 2 * 2 * 2 * 2 * 2
    assert {row["all_reduce"] for row in rows} == {"nccl", "hierarchical_doubling"}
    out = weft(*words)[1]
    assert "speedup" in out
    assert "at 64 GPUs: tp with hierarchical" in out


def test_ranks_spread_over_as_few_nodes_as_the_fabric_allows(weft: Run) -> None:
    words = ("predict", "llama-3.1-8b", "--tp", "4", "--accelerator", "gh200", "--format", "json")
    assert json.loads(weft(*words)[1])["nodes"] == 4
    assert json.loads(weft(*words, "--nodes", "1")[1])["nodes"] == 1
    words = ("plan", "llama-3.1-8b", "--accelerator", "gh200", "--format", "json")
    assert json.loads(weft(*words)[1])["machine"]["gpus_per_node"] == 1


def test_plan_in_every_format(weft: Run, tmp_path: Path) -> None:
    plot = tmp_path / "front.html"
    words = ("plan", "llama-3.1-70b", "--explain", "pp4", "--top", "3", "--plot", str(plot))
    code, out, _ = weft(*words)
    assert code == 0
    assert "Pareto front" in out
    assert "pp4 is number" in out
    assert "vllm serve $MODEL" in out
    assert "layouts rejected" in out
    assert "Throughput against latency" in plot.read_text()
    document = json.loads(weft("plan", "llama-3.1-70b", "--explain", "pp4", "--format", "json")[1])
    assert document["schema"] == "weft.plan/1"
    assert document["commands"]["weft"].startswith("weft run llama-3.1-70b")
    assert document["explanation"].startswith("pp4 is number")
    rows = list(csv.DictReader(io.StringIO(weft("plan", "llama-3.1-70b", "--format", "csv")[1])))
    assert [row["rank"] for row in rows] == [str(n + 1) for n in range(len(rows))]


def test_calibrate_writes_a_file_that_predict_reads(
    weft: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("weft.calibration.calibrate_accelerator.CPU_SIZES", SMALL)
    app = app_with_default(
        plan.plan, {"accelerator": calibrate_accelerator.calibrate_accelerator}, epilog=""
    )
    file = tmp_path / "here.json"
    app(["accelerator", "--device", "cpu", "-o", str(file)], standalone_mode=False)
    assert "matmul_tflops" in capsys.readouterr().out
    words = ["accelerator", "--device", "cpu", "-o", str(file), "--beside", "h200-sxm"]
    app([*words, "--format", "csv"], standalone_mode=False)
    compared = {
        row["quantity"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())
    }
    assert compared["stream_gb_s"]["beside"] == "4400.0"
    assert 0 < float(compared["stream_gb_s"]["ratio"]) < 1
    words = ("--accelerator", str(file), "--fabric", "ethernet-10g", "--format", "json")
    document = json.loads(weft("predict", "llama-3.2-1b", *words)[1])
    assert document["accelerator"].startswith("cpu")
    code, _, err = weft("predict", "llama-3.2-1b", "--accelerator", str(file))
    assert code == 2
    assert "--fabric NAME" in err
    with pytest.raises(typer.BadParameter, match="create it"):
        app(["accelerator", "-o", str(tmp_path / "no" / "x")], standalone_mode=False)


def test_the_all_reduce_command_is_there(weft: Run) -> None:
    code, out, _ = weft("predict", "allreduce", "--nodes", "2", "--sizes", "128K")
    assert code == 0
    assert "hierarchical_doubling" in out


@pytest.mark.parametrize("objective", ["latency", "throughput", "goodput"])
def test_plan_objectives_limits_and_what_if(weft: Run, objective: str) -> None:
    words = ("plan", "llama-3.1-8b", "--gpus", "8", "--objective", objective, "--tpot", "50")
    document = json.loads(weft(*words, "--set", "inter.bandwidth=x10", "--format", "json")[1])
    assert document["objective"] == objective
    assert all(row["tpot_ms"]["value"] <= 50 for row in document["plans"])
