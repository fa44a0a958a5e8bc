"""DeepSeek-V2 and V3, Kimi-K2: latent attention, experts beside shared ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from weft.vocabulary.attention_kinds import Latent
from weft.vocabulary.config_parts import Fields, mlp_bias
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.expert_parts import expert_groups, experts_with_shared, sigmoid_routing
from weft.vocabulary.families.family import Config, Family, experts, sizes
from weft.vocabulary.feed_forward_kinds import Routing
from weft.vocabulary.rope import YarnScaling
from weft.vocabulary.rope_config import read_rope
from weft.vocabulary.tensor_names import TensorNames


def _latent(config: ConfigReader) -> Fields:
    heads, rope_dim = config.integer("num_attention_heads"), config.integer("qk_rope_head_dim")
    if config.optional_integer("num_key_value_heads") not in (None, heads):
        raise config.error("num_key_value_heads must be num_attention_heads: latent attention")
    nope_dim = config.integer("qk_nope_head_dim")
    rope = read_rope(config, head_dim=rope_dim, interleaved=config.flag("rope_interleave"))
    score = rope.scaling.score_factor if isinstance(rope.scaling, YarnScaling) else 1.0
    kind = Latent(
        num_heads=heads,
        q_rank=config.optional_integer("q_lora_rank"),
        kv_rank=config.integer("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        v_dim=config.integer("v_head_dim"),
        rope=rope,
        scale=(nope_dim + rope_dim) ** -0.5 * score,
        bias=config.flag("attention_bias"),
    )
    return {"attentions": (kind,), "rope": rope, "head_dim": rope_dim, "num_kv_heads": heads}


def _softmax_routing(config: ConfigReader) -> Fields:
    """Softmax scores; only experts of the best groups, where the method says so."""
    config.refuse("norm_topk_prob")
    methods = {"greedy": "all", "group_limited_greedy": "groups"}
    groups, chosen = 1, 1
    if config.choice("topk_method", methods) == "groups":
        groups, chosen = expert_groups(config)
    return {
        "routing": Routing(
            normalize=False,
            scale=config.number("routed_scaling_factor"),
            groups=groups,
            groups_per_token=chosen,
            fp32=True,
        )
    }


_LATENT_SIZES: Final[dict[str, Any]] = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_interleave": True,
}

_DEEPSEEK_V2: Final = Family(
    model_type="deepseek_v2",
    defaults=_LATENT_SIZES
    | {
        "vocab_size": 102400,
        "intermediate_size": 11008,
        "max_position_embeddings": 2048,
        "eos_token_id": 2,
        "first_k_dense_replace": 0,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
        "moe_intermediate_size": 1407,
    },
    parts=(_latent, mlp_bias, experts_with_shared, _softmax_routing),
    aliases={"num_experts": "n_routed_experts"},
)

_DEEPSEEK_V3: Final = Family(
    model_type="deepseek_v3",
    defaults=_LATENT_SIZES
    | sizes(61, 7168, 128, 128, 18432)
    | {
        "vocab_size": 129280,
        "max_position_embeddings": 4096,
        "eos_token_id": 1,
        "first_k_dense_replace": 3,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "moe_intermediate_size": 2048,
    },
    parts=(_latent, experts_with_shared, sigmoid_routing),
    names=TensorNames(ignored=("model.layers.{num_layers}.",)),
    aliases={"num_local_experts": "n_routed_experts"},
)

FAMILIES: Final = (
    _DEEPSEEK_V2,
    _DEEPSEEK_V3,
    replace(_DEEPSEEK_V3, model_type="kimi_k2"),
    _DEEPSEEK_V3.beside_images(
        "kimi_k25",
        model="language_model.model",
        ignored=("vision_tower.", "mm_projector.", "language_model.model.layers.{num_layers}."),
    ),
)


def _yarn(factor: float, magnitude: float = 1.0) -> Config:
    return {
        "type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": 4096,
        "mscale": magnitude,
        "mscale_all_dim": magnitude,
    }


_V2: Final = {
    "model_type": "deepseek_v2",
    "max_position_embeddings": 163840,
    "first_k_dense_replace": 1,
    "rope_scaling": _yarn(40.0, 0.707),
    "eos_token_id": 100001,
}

MODELS: Final[dict[str, Config]] = {
    "deepseek-v2-lite": _V2
    | sizes(27, 2048, 16, 16, 10944)
    | experts(64, 6, 1408)
    | {"q_lora_rank": None},
    "deepseek-v2": _V2
    | sizes(60, 5120, 128, 128, 12288)
    | experts(160, 6, 1536)
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
}
