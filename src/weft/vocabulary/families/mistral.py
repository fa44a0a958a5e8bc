"""Mistral and Mixtral."""

from __future__ import annotations

from typing import Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary.expert_parts import local_experts
from weft.vocabulary.families.family import Config, Family, sizes
from weft.vocabulary.tensor_names import TensorNames

_MISTRAL: Final = Family(
    model_type="mistral",
    defaults={
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "eos_token_id": 2,
        "sliding_window": 4096,
    },
    parts=(attention.rope, attention.window),
)

MIXTRAL: Final = Family(
    model_type="mixtral",
    defaults={
        **_MISTRAL.defaults,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    parts=(attention.rope, attention.window, local_experts),
    names=TensorNames(feed_forward="block_sparse_moe", experts=("w1", "w3", "w2")),
    aliases={"num_experts": "num_local_experts"},
)

FAMILIES: Final = (_MISTRAL, MIXTRAL)

_COMMON: Final = {
    "rms_norm_eps": 1e-5,
    "vocab_size": 32768,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "sliding_window": None,
}

MODELS: Final[dict[str, Config]] = {
    "mistral-7b-v0.3": _COMMON | {"model_type": "mistral"} | sizes(32, 4096, 32, 8, 14336),
    "mixtral-8x7b": _COMMON
    | sizes(32, 4096, 32, 8, 14336)
    | {"model_type": "mixtral", "vocab_size": 32000},
    "mixtral-8x22b": _COMMON
    | sizes(56, 6144, 48, 8, 16384)
    | {"model_type": "mixtral", "max_position_embeddings": 65536},
}
