"""``weft study engines`` with weft's own server: real ranks, their traces, their schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weft.cli import main
from weft.study.engines.model_folder import write_model

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "dtype": "float32",
}


@pytest.mark.timeout(240)
def test_traces_of_tensor_parallel_and_pipeline_ranks_conform(tmp_path: Path, capsys):
    """A prompt longer than a step's rows has chunks after which nothing is sampled."""
    model = write_model(tmp_path / "tiny", CONFIG)
    options = ["--layouts", "tp2,pp2", "--model", model, "--workloads", "a=70/6/2"]
    loads = ["--concurrency", "2", "--rates", "", "--requests", "2", "--device", "cpu"]
    output = ["--output", str(tmp_path), "--goodput", "ttft:60000"]
    assert main.run(["study", "engines", *options, *loads, *output]) == 0
    cases = json.loads((tmp_path / "study.json").read_text())["cases"]
    for case in cases:
        assert case["trace"]["conforms"] is True
        assert {phase["phase"] for phase in case["trace"]["phases"]} >= {"prefill", "decode"}
        assert all(phase["compute_us"] > 0 for phase in case["trace"]["phases"])
        sizes = case["trace"]["message_sizes"]
        assert ("all_reduce" in sizes) == (case["layout"] == "tp2")
        assert ("send" in sizes) == (case["layout"] == "pp2")
    assert cases[0]["trace"]["phases"][0]["waiting_us"] is not None
    assert "conforms" in capsys.readouterr().out
