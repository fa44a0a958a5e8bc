"""Llama 2 and 3."""

from __future__ import annotations

from typing import Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary.config_parts import mlp_bias
from weft.vocabulary.families.family import Config, Family, llama3_rope, sizes

FAMILIES: Final = (
    Family(
        model_type="llama",
        defaults={
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "max_position_embeddings": 2048,
            "eos_token_id": 2,
        },
        parts=(attention.rope, attention.attention_bias, mlp_bias),
    ),
)

_LLAMA2: Final = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_LLAMA3: Final = _LLAMA2 | {
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "rope_scaling": llama3_rope(8.0),
    "max_position_embeddings": 131072,
    "eos_token_id": [128001, 128008, 128009],
}
_LLAMA32: Final = _LLAMA3 | {"rope_scaling": llama3_rope(32.0), "tie_word_embeddings": True}

MODELS: Final[dict[str, Config]] = {
    "llama-3.2-1b": _LLAMA32 | sizes(16, 2048, 32, 8, 8192),
    "llama-3.2-3b": _LLAMA32 | sizes(28, 3072, 24, 8, 8192),
    "llama-3.1-8b": _LLAMA3 | sizes(32, 4096, 32, 8, 14336),
    "llama-3.1-70b": _LLAMA3 | sizes(80, 8192, 64, 8, 28672),
    "llama-3.1-405b": _LLAMA3 | sizes(126, 16384, 128, 8, 53248),
    "llama-2-7b": _LLAMA2 | sizes(32, 4096, 32, 32, 11008),
    "llama-2-13b": _LLAMA2 | sizes(40, 5120, 40, 40, 13824),
    "llama-2-70b": _LLAMA2 | sizes(80, 8192, 64, 8, 28672),
}

EMBEDDED: Final = _LLAMA3 | sizes(32, 128, 8, 4, 352) | {"dtype": "float32", "eos_token_id": 257}
"""The shape of llama-3.1-8b (layers, vocabulary) with a narrow hidden size, for machines that
have no weights: same collectives, small messages."""
