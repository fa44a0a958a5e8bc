"""``weft bench decode`` on the CPU, with real ranks."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from weft.cli.main import run

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 199,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return str(tmp_path)


def test_bench_decode_alone_with_profile(model, tmp_path, capsys):
    path = tmp_path / "bench.json"
    words = ["--case", "2x8", "--case", "1x4", "--decode", "5", "--repeats", "1", "--profile"]
    assert run(["bench", "decode", model, *words, "-o", str(path), "--no-graphs", "--overlap"]) == 0
    document = json.loads(path.read_text())
    assert document["schema"] == "weft.bench-decode/1"
    assert [(row["batch"], row["prompt_tokens"]) for row in document["rows"]] == [(2, 8), (1, 4)]
    for row in document["rows"]:
        assert row["ttft_ms"] > 0
        assert row["roofline_ms"] > 0
        assert row["memory_gb_s"] == pytest.approx(row["step_gb"] / row["tpot_ms"] * 1e3)
    assert document["profiles"]["2x8"]
    assert "tpot_ms" in capsys.readouterr().out


def test_bench_decode_of_a_pipeline(model, tmp_path):
    path = tmp_path / "bench.json"
    words = ["--pp", "2", "--case", "3x8", "--decode", "4", "--repeats", "1", "--device", "cpu"]
    assert run(["bench", "decode", model, *words, "-o", str(path), "--format", "json"]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    weights = sum(2 * size for size in (64 * (4 + 2 + 2) * 16, 64 * 64, 3 * 64 * 96, 2 * 64))
    cache = 2 * (8 + 2) * 2 * 16 * 2 * 2
    assert row["step_gb"] * 1e9 == pytest.approx(4 * (weights + 64 + 199 * 64 + cache))


def test_bench_decode_over_two_launchers(model, tmp_path):
    path = tmp_path / "bench.json"
    words = ["bench", "decode", model, "--tp", "2", "--nnodes", "2", "--case", "2x8"]
    words += ["--decode", "4", "--repeats", "1", "--master-port", str(free_port())]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "weft", *words, "--node-rank", str(node), "-o", str(path)],
            stdout=subprocess.DEVNULL,
        )
        for node in range(2)
    ]
    try:
        assert [node.wait(timeout=120) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    document = json.loads(path.read_text())
    assert document["machine"]["nodes"] == 2
    assert document["rows"][0]["layout"] == "tp2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--case", "8"], "--case 8"),
        (["--decode", "1"], "--decode 1"),
        (["--repeats", "0"], "--repeats 0"),
        (["--weights", "none"], "--weights 'none'"),
        (["--tp", "3"], "--tp 3"),
        (["--dp", "2"], "--dp 2: replicas"),
    ],
)
def test_bench_decode_names_mistakes(words, message, model, capsys):
    assert run(["bench", "decode", model, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert not captured.out
