"""``quantization_config`` of checkpoints on the hub: which format each matrix is in, and its bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from weft import api
from weft.cli.main import run
from weft.errors import ModelConfigError, WorkloadError
from weft.vocabulary.families import BUILTIN_MODELS, spec_from_config
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import find_model, runnable_model
from weft.vocabulary.workload import Workload

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 100,
}
QWEN_MOE = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 3,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 100,
    "moe_intermediate_size": 128,
    "num_experts": 8,
}
DEEPSEEK = {"model_type": "deepseek_v3", "num_hidden_layers": 5}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
FP8_BLOCK = FP8 | {"weight_block_size": [128, 128]}


def compressed(weights, **rest):
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    } | rest


CASES = {
    "fp8 per tensor": (FP8, 1.0),
    "fp8 in blocks": (FP8_BLOCK, 1 + 4 / 128**2),
    "fp8 per channel (fbgemm)": ({"quant_method": "fbgemm_fp8"}, 1.0),
    "fp8 per channel": (
        compressed({"num_bits": 8, "type": "float", "strategy": "channel"}),
        1.0,
    ),
    "fp8 in blocks (compressed-tensors)": (
        compressed(
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}
        ),
        1 + 4 / 128**2,
    ),
    "int8": (compressed({"num_bits": 8, "type": "int", "strategy": "channel"}), 1.0),
    "w4a16": (
        compressed({"num_bits": 4, "type": "int", "group_size": 128, "symmetric": True}),
        0.5 + 2 / 128,
    ),
    "w4a16 with zero points": (
        compressed({"num_bits": 4, "type": "int", "group_size": 32, "symmetric": False}),
        0.5 + 2.5 / 32,
    ),
    "nvfp4": (compressed({"num_bits": 4, "type": "float", "group_size": 16}), 0.5625),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
        0.5 + 2.5 / 128,
    ),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 0.5 + 2.5 / 128),
    "gptq 8 bits": ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0),
    "modelopt fp8": ({"quant_algo": "FP8", "exclude_modules": ["lm_head"]}, 1.0),
    "modelopt nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]},
        0.5625,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_a_dense_model(name):
    quantization, bytes_each = CASES[name]
    plain = spec_from_config("m", LLAMA)
    spec = spec_from_config("m", LLAMA | {"quantization_config": quantization})
    matrices = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512)
    assert plain.weight_bytes == 2 * plain.num_parameters
    assert spec.weight_bytes == plain.weight_bytes - (2 - bytes_each) * matrices
    assert replace(spec, formats=()) == plain


def formats(config, quantization):
    """(attention in, attention out, dense, experts) of every layer."""
    spec = spec_from_config("m", config | {"quantization_config": quantization})
    return [
        tuple(
            form.name for form in (spec.formats[layer if len(spec.formats) > 1 else 0].of_matrices)
        )
        for layer in range(spec.num_layers)
    ]


PLAIN = "bfloat16"


def test_whole_parts_are_left_out_by_name_pattern_and_expression():
    """As gpt-oss, Kimi-K2.5, Qwen3-FP8 and MiniMax-M2 list what they leave out."""
    for left_out in (
        ["model.layers.*.self_attn", "lm_head"],
        ["re:.*self_attn.*"],
        ["self_attn"],
        [f"model.layers.{layer}.self_attn*" for layer in range(3)],
    ):
        found = formats(QWEN_MOE, FP8_BLOCK | {"modules_to_not_convert": left_out})
        assert found == [(PLAIN, PLAIN, "fp8_block", "fp8_block")] * 3
    for router in (["gate"], ["model.layers.0.mlp.gate", "model.layers.0.input_layernorm"]):
        found = formats(QWEN_MOE, FP8_BLOCK | {"modules_to_not_convert": router})
        assert found == [("fp8_block",) * 4] * 3


def test_layers_and_the_matrix_out_of_attention_may_differ():
    """As in DeepSeek-V3.1-NVFP4."""
    into = ("kv_a_proj_with_mqa", "kv_b_proj", "q_a_proj", "q_b_proj")
    left_out = [f"model.layers.{i}.self_attn.{name}" for i in range(4) for name in into]
    found = formats(
        DEEPSEEK, {"quant_algo": "NVFP4", "exclude_modules": [*left_out, "model.layers.4*"]}
    )
    assert found == [(PLAIN, "nvfp4", "nvfp4", "nvfp4")] * 4 + [(PLAIN,) * 4]


def test_groups_name_their_matrices():
    """As in the mixed checkpoints of ModelOpt."""
    groups = {
        "group_0": {
            "weights": {"num_bits": 8, "type": "float"},
            "targets": [f"model.layers.{i}.self_attn" for i in range(3)],
        },
        "group_1": {
            "weights": {"num_bits": 4, "type": "float", "group_size": 16},
            "targets": [f"model.layers.{i}.mlp.experts" for i in range(3)],
        },
    }
    found = formats(QWEN_MOE, {"quant_method": "modelopt", "config_groups": groups})
    assert found == [("float8_e4m3fn", "float8_e4m3fn", PLAIN, "nvfp4")] * 3


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"bits": 4}, "quant_method None"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "bits 3"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:x": {}}}, "dynamic"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "MIXED_PRECISION"),
        (compressed({"num_bits": 2, "type": "int"}), "2-bit int"),
        (compressed({}, config_groups={}), "no config_groups"),
        (compressed({}, config_groups={"a": 3}), "group 3"),
        (compressed({}, transform_config={"config_groups": {"u": {}}}), "transform_config"),
        (FP8 | {"weight_block_size": [128]}, r"\[128\]"),
        (FP8 | {"modules_to_not_convert": ["q_proj"]}, "takes as one part"),
    ],
)
def test_what_is_unknown_is_named(quantization, words):
    with pytest.raises(ModelConfigError, match=words) as caught:
        spec_from_config("m", LLAMA | {"quantization_config": quantization})
    assert "\n" not in str(caught.value)


@pytest.fixture
def checkpoint(tmp_path):
    quantization = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": quantization}))
    return str(tmp_path)


def test_such_a_checkpoint_is_described_but_not_run(checkpoint, capsys):
    assert find_model(checkpoint).spec.format_names == ("int4",)
    with pytest.raises(ModelConfigError, match=r"stored as int4.*dequantise it first"):
        runnable_model(checkpoint)
    for words in (["run"], ["bench", "decode"]):
        assert run([*words, checkpoint, "--device", "cpu"]) == 2
        assert "dequantise it first" in capsys.readouterr().err
    assert run(["trace", checkpoint, "--dry-run", "--tp", "2"]) == 0
    assert run(["models", checkpoint]) == 0
    assert "int4" in capsys.readouterr().out


def test_formats_of_older_checkpoints_stand_in_a_file_of_their_own(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    content = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(content))
    assert find_model(str(tmp_path)).spec.format_names == ("float8_e4m3fn",)


def test_predictions_read_the_formats(tmp_path):
    config = {"model_type": "deepseek_v3", "quantization_config": FP8_BLOCK}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load, layout = Workload(batch=8), Layout(tp=8)
    found = api.predict_latency(str(tmp_path), layout, load, engine="vllm", accelerator="h200-sxm")
    plain = api.predict_latency("deepseek-v3", layout, load, engine="vllm", accelerator="h200-sxm")
    asked = api.predict_latency(
        "deepseek-v3", layout, load, engine="vllm", accelerator="h200-sxm", weights="fp8_block"
    )
    assert found.memory.fits
    assert not plain.memory.fits
    assert found.memory.weights_gb == pytest.approx(asked.memory.weights_gb)
    total = find_model(str(tmp_path)).spec.weight_bytes / 8e9
    assert found.memory.weights_gb == pytest.approx(total, rel=0.03)
    assert plain.memory.weights_gb == pytest.approx(
        BUILTIN_MODELS["deepseek-v3"].weight_bytes / 8e9, rel=0.03
    )


def test_a_pattern_that_is_no_expression_is_refused() -> None:
    formats = {"quant_method": "fp8", "modules_to_not_convert": ["re:["]}
    with pytest.raises(ModelConfigError, match=r"'re:\['"):
        spec_from_config("m", {"model_type": "llama", "quantization_config": formats})


@pytest.mark.parametrize("size", [10**30, 10**400])
def test_a_size_that_no_tensor_has_is_refused(size: int) -> None:
    with pytest.raises(ModelConfigError, match=r"vocab_size.*at most"):
        spec_from_config("m", {"model_type": "llama", "vocab_size": size})


@pytest.mark.parametrize("load", ["chat", 5, {"prompt_tokens": 4}])
def test_a_workload_of_another_type_is_refused(load: object) -> None:
    with pytest.raises(WorkloadError, match=r"`workload`.*must be a Workload"):
        api.predict("embedded", workload=load)  # type: ignore[arg-type]
