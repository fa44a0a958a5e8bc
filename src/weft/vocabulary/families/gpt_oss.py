"""gpt-oss: sinks, a window in every second layer, experts with biases and a clamped activation."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary.config_parts import Fields
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.expert_parts import local_experts
from weft.vocabulary.families.family import Config, Family, sizes
from weft.vocabulary.feed_forward_kinds import ClampedSwiglu, Routing
from weft.vocabulary.tensor_names import Stacked, TensorNames


def _sink_attention(config: ConfigReader) -> Fields:
    window, full = attention.window_and_full_layers(config, 2)
    given = attention.rope(config) | attention.attention_bias(config)
    kind = attention.grouped_query(config, **given, sinks=True)
    local = replace(kind, window=window)
    layers = range(config.integer("num_hidden_layers"))
    return {"attentions": tuple(kind if layer in full else local for layer in layers)}


def _clamped_experts(config: ConfigReader) -> Fields:
    gate = ClampedSwiglu(alpha=config.number("swiglu_alpha"), limit=config.number("swiglu_limit"))
    other = {"routing": Routing(bias=True), "expert_bias": True, "activation": gate}
    return local_experts(config) | other


FAMILIES: Final = (
    Family(
        model_type="gpt_oss",
        defaults=sizes(36, 2880, 64, 8, 2880)
        | {
            "vocab_size": 201088,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "sliding_window": 128,
            "attention_bias": True,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "swiglu_alpha": 1.702,
            "swiglu_limit": 7.0,
            "rope_theta": 150000.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
        parts=(_sink_attention, _clamped_experts),
        names=TensorNames(router="router", experts=Stacked(interleaved=True)),
        aliases={"num_experts": "num_local_experts"},
    ),
)

MODELS: Final[dict[str, Config]] = {
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "num_local_experts": 32,
        "eos_token_id": 200002,
    },
    "gpt-oss-120b": {"model_type": "gpt_oss", "eos_token_id": 200002},
}
