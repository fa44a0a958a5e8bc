"""The models that weft knows by name: their config.json, as far as it says more than its family."""

from __future__ import annotations

from typing import Any, Final

from weft.vocabulary.families import spec_from_config

Config = dict[str, Any]


def _sizes(layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int) -> Config:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
    }


def _experts(num_experts: int, per_token: int, size: int) -> Config:
    return {
        "num_experts": num_experts,
        "num_experts_per_tok": per_token,
        "moe_intermediate_size": size,
    }


def _llama3_rope(factor: float) -> Config:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _yarn(factor: float, magnitude: float = 1.0) -> Config:
    return {
        "type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": 4096,
        "mscale": magnitude,
        "mscale_all_dim": magnitude,
    }


_LLAMA2: Final = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_LLAMA3: Final = _LLAMA2 | {
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "rope_scaling": _llama3_rope(8.0),
    "max_position_embeddings": 131072,
    "eos_token_id": [128001, 128008, 128009],
}
_LLAMA32: Final = _LLAMA3 | {"rope_scaling": _llama3_rope(32.0), "tie_word_embeddings": True}
_MISTRAL: Final = {
    "rms_norm_eps": 1e-5,
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "sliding_window": None,
}
_QWEN2: Final = {"model_type": "qwen2", "rope_theta": 1e6, "eos_token_id": 151645}
_QWEN2_SMALL: Final = _QWEN2 | {"tie_word_embeddings": True}
_QWEN2_LARGE: Final = _QWEN2 | {"vocab_size": 152064}
_QWEN3: Final = _QWEN2 | {"model_type": "qwen3", "max_position_embeddings": 40960}
_QWEN3_SMALL: Final = _QWEN3 | {"tie_word_embeddings": True}
_QWEN3_MOE: Final = _QWEN3 | {"model_type": "qwen3_moe", "head_dim": 128, "norm_topk_prob": True}
_GEMMA3: Final = {"model_type": "gemma3_text", "sliding_window": 1024}
_GEMMA3_LONG: Final = _GEMMA3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
_DEEPSEEK_V2: Final = {
    "model_type": "deepseek_v2",
    "max_position_embeddings": 163840,
    "first_k_dense_replace": 1,
    "rope_scaling": _yarn(40.0, 0.707),
    "eos_token_id": 100001,
}

_GLM4_MOE: Final = {
    "model_type": "glm4_moe",
    "rope_theta": 1e6,
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
}
_GLM45: Final = (
    _GLM4_MOE
    | _sizes(92, 5120, 96, 8, 12288)
    | {
        "n_routed_experts": 160,
        "moe_intermediate_size": 1536,
        "head_dim": 128,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
    }
)
_QWEN_DELTA: Final = {"rope_theta": 1e7, "max_position_embeddings": 262144}
_LLAMA4: Final = {"model_type": "llama4_text", "eos_token_id": [200001, 200007, 200008]}

CONFIGS: Final[dict[str, Config]] = {
    "llama-3.2-1b": _LLAMA32 | _sizes(16, 2048, 32, 8, 8192),
    "llama-3.2-3b": _LLAMA32 | _sizes(28, 3072, 24, 8, 8192),
    "llama-3.1-8b": _LLAMA3 | _sizes(32, 4096, 32, 8, 14336),
    "llama-3.1-70b": _LLAMA3 | _sizes(80, 8192, 64, 8, 28672),
    "llama-3.1-405b": _LLAMA3 | _sizes(126, 16384, 128, 8, 53248),
    "llama-2-7b": _LLAMA2 | _sizes(32, 4096, 32, 32, 11008),
    "llama-2-13b": _LLAMA2 | _sizes(40, 5120, 40, 40, 13824),
    "llama-2-70b": _LLAMA2 | _sizes(80, 8192, 64, 8, 28672),
    "mistral-7b-v0.3": _MISTRAL | {"model_type": "mistral"} | _sizes(32, 4096, 32, 8, 14336),
    "qwen2.5-0.5b": _QWEN2_SMALL | _sizes(24, 896, 14, 2, 4864),
    "qwen2.5-1.5b": _QWEN2_SMALL | _sizes(28, 1536, 12, 2, 8960),
    "qwen2.5-3b": _QWEN2_SMALL | _sizes(36, 2048, 16, 2, 11008),
    "qwen2.5-7b": _QWEN2_LARGE | _sizes(28, 3584, 28, 4, 18944),
    "qwen2.5-14b": _QWEN2_LARGE | _sizes(48, 5120, 40, 8, 13824),
    "qwen2.5-32b": _QWEN2_LARGE | _sizes(64, 5120, 40, 8, 27648),
    "qwen2.5-72b": _QWEN2_LARGE | _sizes(80, 8192, 64, 8, 29568),
    "qwen3-0.6b": _QWEN3_SMALL | _sizes(28, 1024, 16, 8, 3072),
    "qwen3-1.7b": _QWEN3_SMALL | _sizes(28, 2048, 16, 8, 6144),
    "qwen3-4b": _QWEN3_SMALL | _sizes(36, 2560, 32, 8, 9728),
    "qwen3-8b": _QWEN3 | _sizes(36, 4096, 32, 8, 12288),
    "qwen3-14b": _QWEN3 | _sizes(40, 5120, 40, 8, 17408),
    "qwen3-32b": _QWEN3 | _sizes(64, 5120, 64, 8, 25600),
    "qwen3-30b-a3b": _QWEN3_MOE | _sizes(48, 2048, 32, 4, 6144) | _experts(128, 8, 768),
    "qwen3-235b-a22b": _QWEN3_MOE | _sizes(94, 4096, 64, 4, 12288) | _experts(128, 8, 1536),
    "mixtral-8x7b": _MISTRAL
    | _sizes(32, 4096, 32, 8, 14336)
    | {"model_type": "mixtral", "vocab_size": 32000},
    "mixtral-8x22b": _MISTRAL
    | _sizes(56, 6144, 48, 8, 16384)
    | {"model_type": "mixtral", "max_position_embeddings": 65536},
    "gemma-3-1b": _GEMMA3
    | _sizes(26, 1152, 4, 1, 6912)
    | {"vocab_size": 262144, "sliding_window": 512, "max_position_embeddings": 32768},
    "gemma-3-4b": _GEMMA3_LONG | _sizes(34, 2560, 8, 4, 10240),
    "gemma-3-12b": _GEMMA3_LONG | _sizes(48, 3840, 16, 8, 15360),
    "gemma-3-27b": _GEMMA3_LONG
    | _sizes(62, 5376, 32, 16, 21504)
    | {"head_dim": 128, "query_pre_attn_scalar": 168},
    "deepseek-v2-lite": _DEEPSEEK_V2
    | _sizes(27, 2048, 16, 16, 10944)
    | _experts(64, 6, 1408)
    | {"q_lora_rank": None},
    "deepseek-v2": _DEEPSEEK_V2
    | _sizes(60, 5120, 128, 128, 12288)
    | _experts(160, 6, 1536)
    | {
        "routed_scaling_factor": 16.0,
        "topk_method": "group_limited_greedy",
        "n_group": 8,
        "topk_group": 3,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "max_position_embeddings": 163840,
        "rope_scaling": _yarn(40.0),
    },
    "kimi-k2": {
        "model_type": "kimi_k2",
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "vocab_size": 163840,
        "n_routed_experts": 384,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.827,
        "rope_theta": 50000.0,
        "rope_scaling": _yarn(32.0),
        "max_position_embeddings": 131072,
        "eos_token_id": 163586,
    },
    "glm-4.5": _GLM45,
    "glm-4.6": _GLM45 | {"max_position_embeddings": 202752},
    "glm-4.5-air": _GLM4_MOE | {"head_dim": 128},
    "qwen3-next-80b-a3b": _QWEN_DELTA | {"model_type": "qwen3_next", "eos_token_id": 151645},
    "qwen3.5-27b": _QWEN_DELTA
    | _sizes(64, 5120, 24, 4, 17408)
    | {"model_type": "qwen3_5_text", "linear_num_value_heads": 48, "eos_token_id": 248044},
    "qwen3.5-397b-a17b": _QWEN_DELTA
    | _sizes(60, 4096, 32, 2, 1024)
    | _experts(512, 10, 1024)
    | {
        "model_type": "qwen3_5_moe_text",
        "shared_expert_intermediate_size": 1024,
        "linear_num_value_heads": 64,
        "eos_token_id": 248044,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "num_local_experts": 32,
        "eos_token_id": 200002,
    },
    "gpt-oss-120b": {"model_type": "gpt_oss", "eos_token_id": 200002},
    "minimax-m2": {"model_type": "minimax_m2", "rotary_dim": 64},
    "llama-4-scout": _LLAMA4
    | {
        "max_position_embeddings": 10485760,
        "rope_scaling": _llama3_rope(16.0) | {"high_freq_factor": 1.0},
    },
    "llama-4-maverick": _LLAMA4
    | {
        "max_position_embeddings": 1048576,
        "num_local_experts": 128,
        "interleave_moe_layer_step": 2,
        "use_qk_norm": False,
    },
    # The shape of llama-3.1-8b (layers, vocabulary) with a narrow hidden size, for
    # machines that have no weights: same collectives, small messages.
    "embedded": _LLAMA3 | _sizes(32, 128, 8, 4, 352) | {"dtype": "float32", "eos_token_id": 257},
}

BUILTIN_MODELS: Final = {name: spec_from_config(name, c) for name, c in CONFIGS.items()}
