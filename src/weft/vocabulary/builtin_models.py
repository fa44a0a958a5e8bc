"""The models that weft knows by name, with their true sizes (from their config.json files)."""

from __future__ import annotations

from typing import Any, Final

from weft.vocabulary.families import spec_from_config
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.rope import Llama3Scaling, Rope

_LLAMA31_ROPE = Rope(theta=500000.0, scaling=Llama3Scaling(factor=8.0))
_LLAMA32_ROPE = Rope(theta=500000.0, scaling=Llama3Scaling(factor=32.0))


def _llama3(name: str, **sizes: Any) -> ModelSpec:
    sizes.setdefault("rope", _LLAMA31_ROPE)
    sizes.setdefault("head_dim", 128)
    return ModelSpec(
        name=name,
        vocab_size=128256,
        eos_token_ids=(128001, 128008, 128009),
        **sizes,
    )


def _llama2(name: str, **sizes: Any) -> ModelSpec:
    return ModelSpec(
        name=name,
        head_dim=128,
        vocab_size=32000,
        max_position=4096,
        rope=Rope(theta=10000.0),
        eos_token_ids=(2,),
        **sizes,
    )


def _qwen(name: str, family: Any, **sizes: Any) -> ModelSpec:
    sizes.setdefault("vocab_size", 151936)
    return ModelSpec(
        name=name,
        family=family,
        head_dim=sizes.pop("head_dim", 128),
        rope=Rope(theta=1000000.0),
        max_position=32768 if family == "qwen2" else 40960,
        norm_eps=1e-6,
        qkv_bias=family == "qwen2",
        qk_norm=family != "qwen2",
        eos_token_ids=(151645,),
        **sizes,
    )


def _sizes(
    layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int
) -> dict[str, Any]:
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "intermediate_size": intermediate,
    }


_YARN = {
    "type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_YARN_V2 = _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}


def _config_sizes(
    layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int
) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
    }


def _gemma(name: str, **config: Any) -> ModelSpec:
    if "max_position_embeddings" not in config:
        config["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    return spec_from_config(name, {"model_type": "gemma3_text", "sliding_window": 1024} | config)


def _deepseek(name: str, model_type: str, **config: Any) -> ModelSpec:
    return spec_from_config(
        name, {"model_type": model_type, "max_position_embeddings": 163840} | config
    )


_SPECS: Final = (
    _llama3(
        "llama-3.2-1b",
        **_sizes(16, 2048, 32, 8, 8192),
        head_dim=64,
        tie_embeddings=True,
        rope=_LLAMA32_ROPE,
    ),
    _llama3(
        "llama-3.2-3b",
        **_sizes(28, 3072, 24, 8, 8192),
        tie_embeddings=True,
        rope=_LLAMA32_ROPE,
    ),
    _llama3("llama-3.1-8b", **_sizes(32, 4096, 32, 8, 14336)),
    _llama3("llama-3.1-70b", **_sizes(80, 8192, 64, 8, 28672)),
    _llama3("llama-3.1-405b", **_sizes(126, 16384, 128, 8, 53248)),
    _llama2("llama-2-7b", **_sizes(32, 4096, 32, 32, 11008)),
    _llama2("llama-2-13b", **_sizes(40, 5120, 40, 40, 13824)),
    _llama2("llama-2-70b", **_sizes(80, 8192, 64, 8, 28672)),
    ModelSpec(
        name="mistral-7b-v0.3",
        family="mistral",
        **_sizes(32, 4096, 32, 8, 14336),
        head_dim=128,
        vocab_size=32768,
        max_position=32768,
        rope=Rope(theta=1000000.0),
        eos_token_ids=(2,),
    ),
    _qwen(
        "qwen2.5-0.5b", "qwen2", **_sizes(24, 896, 14, 2, 4864), head_dim=64, tie_embeddings=True
    ),
    _qwen("qwen2.5-1.5b", "qwen2", **_sizes(28, 1536, 12, 2, 8960), tie_embeddings=True),
    _qwen("qwen2.5-3b", "qwen2", **_sizes(36, 2048, 16, 2, 11008), tie_embeddings=True),
    _qwen("qwen2.5-7b", "qwen2", **_sizes(28, 3584, 28, 4, 18944), vocab_size=152064),
    _qwen("qwen2.5-14b", "qwen2", **_sizes(48, 5120, 40, 8, 13824), vocab_size=152064),
    _qwen("qwen2.5-32b", "qwen2", **_sizes(64, 5120, 40, 8, 27648), vocab_size=152064),
    _qwen("qwen2.5-72b", "qwen2", **_sizes(80, 8192, 64, 8, 29568), vocab_size=152064),
    _qwen("qwen3-0.6b", "qwen3", **_sizes(28, 1024, 16, 8, 3072), tie_embeddings=True),
    _qwen("qwen3-1.7b", "qwen3", **_sizes(28, 2048, 16, 8, 6144), tie_embeddings=True),
    _qwen("qwen3-4b", "qwen3", **_sizes(36, 2560, 32, 8, 9728), tie_embeddings=True),
    _qwen("qwen3-8b", "qwen3", **_sizes(36, 4096, 32, 8, 12288)),
    _qwen("qwen3-14b", "qwen3", **_sizes(40, 5120, 40, 8, 17408)),
    _qwen("qwen3-32b", "qwen3", **_sizes(64, 5120, 64, 8, 25600)),
    _qwen(
        "qwen3-30b-a3b",
        "qwen3_moe",
        **_sizes(48, 2048, 32, 4, 6144),
        num_experts=128,
        experts_per_token=8,
        expert_intermediate_size=768,
    ),
    _qwen(
        "qwen3-235b-a22b",
        "qwen3_moe",
        **_sizes(94, 4096, 64, 4, 12288),
        num_experts=128,
        experts_per_token=8,
        expert_intermediate_size=1536,
    ),
    ModelSpec(
        name="mixtral-8x7b",
        family="mixtral",
        **_sizes(32, 4096, 32, 8, 14336),
        head_dim=128,
        vocab_size=32000,
        max_position=32768,
        rope=Rope(theta=1000000.0),
        num_experts=8,
        experts_per_token=2,
        expert_intermediate_size=14336,
        eos_token_ids=(2,),
    ),
    ModelSpec(
        name="mixtral-8x22b",
        family="mixtral",
        **_sizes(56, 6144, 48, 8, 16384),
        head_dim=128,
        vocab_size=32768,
        max_position=65536,
        rope=Rope(theta=1000000.0),
        num_experts=8,
        experts_per_token=2,
        expert_intermediate_size=16384,
        eos_token_ids=(2,),
    ),
    _gemma(
        "gemma-3-1b",
        **_config_sizes(26, 1152, 4, 1, 6912),
        vocab_size=262144,
        sliding_window=512,
        max_position_embeddings=32768,
    ),
    _gemma("gemma-3-4b", **_config_sizes(34, 2560, 8, 4, 10240)),
    _gemma("gemma-3-12b", **_config_sizes(48, 3840, 16, 8, 15360)),
    _gemma(
        "gemma-3-27b",
        **_config_sizes(62, 5376, 32, 16, 21504),
        head_dim=128,
        query_pre_attn_scalar=168,
    ),
    _deepseek(
        "deepseek-v2-lite",
        "deepseek_v2",
        **_config_sizes(27, 2048, 16, 16, 10944),
        q_lora_rank=None,
        num_experts_per_tok=6,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        rope_scaling=_YARN_V2,
        eos_token_id=100001,
    ),
    _deepseek(
        "deepseek-v2",
        "deepseek_v2",
        **_config_sizes(60, 5120, 128, 128, 12288),
        n_routed_experts=160,
        num_experts_per_tok=6,
        moe_intermediate_size=1536,
        first_k_dense_replace=1,
        routed_scaling_factor=16.0,
        topk_method="group_limited_greedy",
        n_group=8,
        topk_group=3,
        rope_scaling=_YARN_V2,
        eos_token_id=100001,
    ),
    _deepseek("deepseek-v3", "deepseek_v3", rope_scaling=_YARN),
    _deepseek(
        "kimi-k2",
        "kimi_k2",
        **_config_sizes(61, 7168, 64, 64, 18432),
        vocab_size=163840,
        n_routed_experts=384,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        routed_scaling_factor=2.827,
        rope_theta=50000.0,
        rope_scaling=_YARN | {"factor": 32.0},
        max_position_embeddings=131072,
        eos_token_id=163586,
    ),
    # The shape of llama-3.1-8b (layers, vocabulary) with a narrow hidden size, for
    # machines that have no weights: same collectives, small messages.
    ModelSpec(
        name="embedded",
        num_layers=32,
        hidden_size=128,
        num_heads=8,
        num_kv_heads=4,
        head_dim=16,
        intermediate_size=352,
        vocab_size=128256,
        dtype="float32",
        max_position=131072,
        rope=_LLAMA31_ROPE,
        eos_token_ids=(257,),
    ),
)

BUILTIN_MODELS: Final = {spec.name: spec for spec in _SPECS}
