"""GLM-4.5 and 4.6: a part of each head turned, experts beside a shared one."""

from __future__ import annotations

from typing import Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary.config_parts import Fields
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.expert_parts import experts_with_shared, sigmoid_routing
from weft.vocabulary.families.family import Config, Family, sizes
from weft.vocabulary.tensor_names import TensorNames


def _switches(config: ConfigReader) -> Fields:
    return {"qkv_bias": config.flag("attention_bias"), "qk_norm": config.flag("use_qk_norm")}


FAMILIES: Final = (
    Family(
        model_type="glm4_moe",
        defaults={
            "vocab_size": 151552,
            "intermediate_size": 10944,
            "num_hidden_layers": 46,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 8,
            "n_shared_experts": 1,
            "n_routed_experts": 128,
            "routed_scaling_factor": 1.0,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
        },
        parts=(attention.partial_rope, _switches, experts_with_shared, sigmoid_routing),
        names=TensorNames(ignored=("model.layers.{num_layers}.",)),
        aliases={"num_local_experts": "n_routed_experts"},
    ),
)

_COMMON: Final = {
    "model_type": "glm4_moe",
    "rope_theta": 1e6,
    "attention_bias": True,
    "eos_token_id": [151329, 151336, 151338],
}
_LARGE: Final = (
    _COMMON
    | sizes(92, 5120, 96, 8, 12288)
    | {
        "n_routed_experts": 160,
        "moe_intermediate_size": 1536,
        "head_dim": 128,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
    }
)

MODELS: Final[dict[str, Config]] = {
    "glm-4.5": _LARGE,
    "glm-4.6": _LARGE | {"max_position_embeddings": 202752},
    "glm-4.5-air": _COMMON | {"head_dim": 128},
}
