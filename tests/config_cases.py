"""Configs of every supported family, and whether weft reads them as transformers does."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from checkpoints import randomize, reference_logits
from stage_logits import stage_logits
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.engine.step import Step
from weft.errors import ModelConfigError
from weft.vocabulary.families import spec_from_config
from weft.vocabulary.model_spec import ModelSpec

Config = dict[str, Any]

transformers.utils.logging.disable_progress_bar()

_SIZES: Config = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
_WINDOWS: Config = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}

BASES: dict[str, Config] = {
    "llama": _SIZES | {"head_dim": 12, "attention_bias": True, "mlp_bias": True},
    "mistral": _SIZES | {"head_dim": 12, "sliding_window": 7},
    "qwen2": _SIZES | _WINDOWS,
    "qwen3": _SIZES | _WINDOWS | {"head_dim": 12, "attention_bias": True},
    "mixtral": _SIZES
    | {"head_dim": 12, "sliding_window": 7, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": _SIZES
    | {
        "head_dim": 12,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 7,
        "num_experts": 9,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
    },
}
BASES["gemma3_text"] = {
    **{key: value for key, value in _SIZES.items() if key not in ("hidden_act", "rope_theta")},
    "head_dim": 12,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": True,
    "query_pre_attn_scalar": 20,
    "sliding_window": 7,
    "sliding_window_pattern": 2,
    "rope_local_base_freq": 300.0,
    "rope_theta": 9000.0,
    "final_logit_softcapping": 3.0,
}
BASES["deepseek_v2"] = {
    **_SIZES,
    "num_key_value_heads": 4,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
    "attention_bias": True,
    "mlp_bias": True,
}
BASES["deepseek_v3"] = {
    **{key: value for key, value in BASES["deepseek_v2"].items() if key != "mlp_bias"},
    "norm_topk_prob": True,
    "rope_interleave": True,
}
del BASES["deepseek_v3"]["topk_method"]

_PLAIN_SIZES = {key: value for key, value in _SIZES.items() if key != "rope_theta"}
BASES["glm4_moe"] = {
    **_PLAIN_SIZES,
    "head_dim": 12,
    "attention_bias": True,
    "use_qk_norm": True,
    "rope_theta": 5000.0,
    "partial_rotary_factor": 0.5,
    "n_routed_experts": 12,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
}
BASES["qwen3_5_text"] = {
    **_PLAIN_SIZES,
    "rope_theta": 5000.0,
    "head_dim": 16,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "full_attention_interval": 2,
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
BASES["qwen3_5_moe_text"] = {
    **{key: value for key, value in BASES["qwen3_5_text"].items() if key != "intermediate_size"},
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "num_experts": 9,
    "num_experts_per_tok": 2,
}
BASES["qwen3_next"] = {
    **BASES["qwen3_5_moe_text"],
    "intermediate_size": 24,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
}
BASES["gpt_oss"] = {
    **_SIZES,
    "head_dim": 12,
    "attention_bias": True,
    "sliding_window": 7,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "swiglu_alpha": 1.5,
    "swiglu_limit": 0.2,
}
BASES["minimax_m2"] = {
    **_SIZES,
    "head_dim": 12,
    "rotary_dim": 8,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
}
BASES["llama4_text"] = {
    **_SIZES,
    "head_dim": 12,
    "attention_bias": True,
    "intermediate_size_mlp": 20,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
    "use_qk_norm": True,
    "no_rope_layer_interval": 3,
    "attention_chunk_size": 7,
    "attn_temperature_tuning": True,
    "floor_scale": 5,
    "attn_scale": 0.3,
}

LARGE_DEFAULTS = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "moe_intermediate_size",
    "num_experts",
    "n_routed_experts",
    "num_local_experts",
    "shared_expert_intermediate_size",
    "intermediate_size_mlp",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "kv_lora_rank",
    "q_lora_rank",
}
"""Left out, these make a model too large to run in a test; their specs are compared."""

ROPES: list[Config] = [
    {"rope_type": "default", "rope_theta": 300.0},
    {"rope_type": "linear", "factor": 3.0},
    {"type": "linear", "factor": 2.0, "rope_theta": 777.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16},
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "truncate": False,
        "attention_factor": 1.3,
    },
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 8,
        "mscale": 0.9,
        "mscale_all_dim": 0.6,
    },
    {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0] * 6,
        "long_factor": [2.0] * 6,
        "original_max_position_embeddings": 16,
    },
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "linear", "factor": 0.0},
]


def other_values(key: str, value: Any) -> list[Any]:
    """Values to try in place of ``value``, by name where the name has a meaning."""
    named: dict[str, list[Any]] = {
        "hidden_act": ["gelu", "gelu_pytorch_tanh", "relu", "gelu_new", "mish"],
        "rope_parameters": ROPES,
        "rope_scaling": ROPES,
        "rope_theta": [100.0, 2e6, 0.0, None],
        "head_dim": [8, 16, 7, None],
        "layer_types": [
            ["full_attention", "sliding_attention", "full_attention"],
            ["sliding_attention"] * 3,
            ["full_attention"],
            ["chunked_attention"] * 3,
            ["full_attention", "linear_attention", "linear_attention"],
            ["full_attention", "chunked_attention", "chunked_attention"],
        ],
        "sliding_window": [None, 3, 0, 200],
        "max_window_layers": [0, 2, 9],
        "mlp_only_layers": [[0, 2], None, []],
        "decoder_sparse_step": [2, 3],
        "num_key_value_heads": [1, 4, None, 3],
        "num_attention_heads": [2, 8],
        "rms_norm_eps": [0.5, 1e-3, None],
        "partial_rotary_factor": [0.5, 0.25],
        "rotary_dim": [None, 4, 12],
        "linear_num_key_heads": [1, 4],
        "linear_num_value_heads": [2, 8, 3],
        "linear_conv_kernel_dim": [2, 5],
        "full_attention_interval": [1, 3],
        "no_rope_layers": [[1, 0, 1], [0, 0, 0], []],
        "no_rope_layer_interval": [1, 2],
        "moe_layers": [[0, 2], []],
        "interleave_moe_layer_step": [1, 3],
        "attention_chunk_size": [None, 3, 200],
        "original_max_position_embeddings": [16],
        "hidden_activation": ["silu", "gelu", "relu"],
        "sliding_window_pattern": [1, 3],
        "query_pre_attn_scalar": [7, 0],
        "final_logit_softcapping": [None, 1.0, 0.0],
        "rope_local_base_freq": [77.0],
        "q_lora_rank": [None, 12],
        "first_k_dense_replace": [0, 2, 9],
        "topk_method": ["greedy", "noaux_tc"],
        "n_group": [2, 5],
        "topk_group": [1, 4],
        "n_shared_experts": [0, 1],
        "rope_interleave": [False],
        "norm_topk_prob": [True, False],
        "dtype": [],
        "torch_dtype": [],
    }
    if key in named:
        return named[key]
    if isinstance(value, bool) or value is None:
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    return [value + 0.25] if isinstance(value, float) else []


def random_config(family: str, seed: int) -> Config:
    """A config with keys left out at random, ropes, windows, ties and odd vocabularies."""
    draw = random.Random(f"{family}/{seed}")
    config = dict(BASES[family])
    heads = draw.choice([2, 4, 6])
    kv_heads = draw.choice([h for h in (1, 2, 3, 6, heads) if heads % h == 0])
    config |= {
        "vocab_size": draw.randint(7, 90),
        "hidden_size": heads * draw.choice([4, 8, 12]),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if "kv_lora_rank" in config else kv_heads,
        "intermediate_size": draw.randint(3, 40),
        "num_hidden_layers": draw.randint(1, 4),
    }
    heads_apart = sorted(set(config) - {"num_attention_heads", "num_key_value_heads"})
    for key in draw.sample(heads_apart, draw.randint(0, 4)):
        values = other_values(key, config[key])
        if values:
            config[key] = draw.choice(values)
    if draw.random() < 0.5:
        # Gemma's ropes are by kind of layer in the new spelling.
        spellings = ["rope_scaling"] + ["rope_parameters"] * ("rope_local_base_freq" not in config)
        ropes = ROPES if draw.random() < 0.2 else ROPES[:-3]
        config[draw.choice(spellings)] = draw.choice(ropes)
    if {"max_window_layers", "sliding_window_pattern"} & set(config) and draw.random() < 0.5:
        kinds = ["full_attention", "sliding_attention"]
        config["layer_types"] = draw.choices(kinds, k=config["num_hidden_layers"])
    for key in draw.sample(sorted(set(heads_apart) - LARGE_DEFAULTS), draw.randint(0, 5)):
        config.pop(key, None)
    return config


def keys_of(family: str) -> Iterator[str]:
    """Every key of transformers' config class, and what older files spell differently.

    Those of the class that all configs share are tried with the first family only.
    """
    known = set(transformers.CONFIG_MAPPING[family]().to_dict())
    if family != "llama":
        known -= set(transformers.PreTrainedConfig().to_dict())
    older = {"rope_scaling", "rope_theta", "head_dim", "partial_rotary_factor", "attention_bias"}
    ignored = {"model_type", "transformers_version", "architectures", "dtype", "label2id"}
    yield from sorted((known | older | set(BASES[family])) - ignored)


def transformers_config(family: str, config: Config) -> Any:
    """transformers' own reading of a config.json, or None where it has none."""
    try:
        return transformers.CONFIG_MAPPING[family].from_dict(json.loads(json.dumps(config)))
    except Exception:
        return None


def transformers_model(family: str, config: Config, seed: int = 0) -> Any:
    """transformers' model with random weights, or None where it cannot run the config."""
    parsed = transformers_config(family, config)
    if parsed is None:
        return None
    parsed._attn_implementation = parsed._experts_implementation = "eager"
    torch.manual_seed(seed)
    try:
        model = transformers.AutoModelForCausalLM.from_config(parsed, dtype=torch.float32).eval()
        randomize(model)
    except Exception:
        return None
    return model


def prompt_of(vocab_size: int) -> list[int]:
    return [number * 7 % (vocab_size - 1) + 1 for number in range(23)]


def spec_of(family: str, config: Config) -> ModelSpec | None:
    """weft's reading, or None where it refuses in one line."""
    try:
        return spec_from_config("m", config | {"model_type": family})
    except ModelConfigError as error:
        line = str(error)
    assert "\n" not in line.strip()
    assert line.startswith("model m: ")
    return None


def assert_same(family: str, config: Config, directory: Path) -> str:
    """``equal``, ``refused`` or ``impossible`` (in transformers); fails where silently different."""
    spec = spec_of(family, config)
    if spec is None:
        return "refused"
    model = transformers_model(family, config)
    if model is None:
        return "impossible"
    model.save_pretrained(directory)
    content = config | {"model_type": family, "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(content))
    prompt = prompt_of(spec.vocab_size)
    if logits_of(model, prompt) is None:
        return "impossible"
    with LLM(str(directory), dtype="float32", cache_tokens=128, max_batch_tokens=32) as llm:
        ours = all_logits(llm, prompt)[:, : spec.vocab_size]
        sampling = SamplingParams(max_tokens=8, ignore_eos=True)
        tokens = list(llm.generate([prompt], sampling)[0].token_ids)
    expected = reference_logits(model, prompt + tokens[:-1])
    difference = (ours - expected[: len(prompt)]).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    if difference >= 1e-4 * scale:  # an ill-conditioned model differs from itself in fp64
        exact = reference_logits(model.double(), prompt + tokens[:-1])
        scale += 1e5 * (exact - expected).abs().max().item()
    assert difference < 1e-4 * scale, f"{family} {config}: logits differ by {difference}"
    best = expected[len(prompt) - 1 :].argmax(dim=1).tolist()
    assert tokens == best, f"{family} {config}: tokens differ"
    return "equal"


def logits_of(model: Any, prompt: list[int]) -> torch.Tensor | None:
    """transformers' logits, or None where it cannot run the config."""
    try:
        return reference_logits(model, prompt)
    except Exception:
        return None


def all_logits(llm: LLM, prompt: list[int]) -> torch.Tensor:
    """Logits [length, vocabulary] of every position of a prompt."""
    engine = llm.engine
    engine.add(10**6, prompt, SamplingParams(max_tokens=1))
    inputs = Step.of(engine.scheduler.schedule())
    inputs.logit_rows = np.arange(len(prompt))
    logits = stage_logits(engine, inputs)
    assert logits is not None
    engine.abort(10**6)
    return logits
