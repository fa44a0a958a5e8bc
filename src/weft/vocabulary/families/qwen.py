"""Qwen2.5, Qwen3 and its experts."""

from __future__ import annotations

from typing import Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary.expert_parts import sparse_experts
from weft.vocabulary.families.family import Config, Family, always, experts, sizes

_QWEN2: Final = Family(
    model_type="qwen2",
    defaults={
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    parts=(attention.rope, always(qkv_bias=True), attention.windows_by_layer),
)

_QWEN3: Final = Family(
    model_type="qwen3",
    defaults={**_QWEN2.defaults, "head_dim": 128},
    parts=(
        attention.rope,
        attention.attention_bias,
        always(qk_norm=True),
        attention.windows_by_layer,
    ),
)

_QWEN3_MOE: Final = Family(
    model_type="qwen3_moe",
    defaults=sizes(24, 2048, 32, 4, 6144)
    | experts(128, 8, 768)
    | {
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
    },
    parts=(
        attention.rope,
        attention.attention_bias,
        always(qk_norm=True),
        attention.switched_window,
        sparse_experts,
    ),
    aliases={"num_local_experts": "num_experts"},
)

FAMILIES: Final = (_QWEN2, _QWEN3, _QWEN3_MOE)

_2: Final = {"model_type": "qwen2", "rope_theta": 1e6, "eos_token_id": 151645}
_2_SMALL: Final = _2 | {"tie_word_embeddings": True}
_2_LARGE: Final = _2 | {"vocab_size": 152064}
_3: Final = _2 | {"model_type": "qwen3", "max_position_embeddings": 40960}
_3_SMALL: Final = _3 | {"tie_word_embeddings": True}
_3_MOE: Final = _3 | {"model_type": "qwen3_moe", "head_dim": 128, "norm_topk_prob": True}

MODELS: Final[dict[str, Config]] = {
    "qwen2.5-0.5b": _2_SMALL | sizes(24, 896, 14, 2, 4864),
    "qwen2.5-1.5b": _2_SMALL | sizes(28, 1536, 12, 2, 8960),
    "qwen2.5-3b": _2_SMALL | sizes(36, 2048, 16, 2, 11008),
    "qwen2.5-7b": _2_LARGE | sizes(28, 3584, 28, 4, 18944),
    "qwen2.5-14b": _2_LARGE | sizes(48, 5120, 40, 8, 13824),
    "qwen2.5-32b": _2_LARGE | sizes(64, 5120, 40, 8, 27648),
    "qwen2.5-72b": _2_LARGE | sizes(80, 8192, 64, 8, 29568),
    "qwen3-0.6b": _3_SMALL | sizes(28, 1024, 16, 8, 3072),
    "qwen3-1.7b": _3_SMALL | sizes(28, 2048, 16, 8, 6144),
    "qwen3-4b": _3_SMALL | sizes(36, 2560, 32, 8, 9728),
    "qwen3-8b": _3 | sizes(36, 4096, 32, 8, 12288),
    "qwen3-14b": _3 | sizes(40, 5120, 40, 8, 17408),
    "qwen3-32b": _3 | sizes(64, 5120, 64, 8, 25600),
    "qwen3-30b-a3b": _3_MOE | sizes(48, 2048, 32, 4, 6144) | experts(128, 8, 768),
    "qwen3-235b-a22b": _3_MOE | sizes(94, 4096, 64, 4, 12288) | experts(128, 8, 1536),
}
