"""Llama 4: chunks in three of four layers, no rope in the fourth, experts that read weighed rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary.attention_kinds import Temperature
from weft.vocabulary.config_parts import Fields, head_dim_of
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.expert_parts import local_experts
from weft.vocabulary.families.family import Config, Family, llama3_rope, sizes
from weft.vocabulary.feed_forward_kinds import Routing
from weft.vocabulary.rope_config import read_rope
from weft.vocabulary.tensor_names import Stacked, TensorNames


def _chunked_attention(config: ConfigReader) -> Fields:
    """Chunks by ``layer_types``; layers that turn nothing have a temperature."""
    layers = range(config.integer("num_hidden_layers"))
    interval = config.integer("no_rope_layer_interval")
    turns = config.items("no_rope_layers") or [(layer + 1) % interval for layer in layers]
    if len(turns) < len(layers):
        raise config.error(f"no_rope_layers has {len(turns)} layers, fewer than the model")
    full = tuple(layer for layer in layers if not turns[layer])
    if config.has("layer_types"):
        full = attention.full_layers(config, {"full_attention": True, "chunked_attention": False})
    chunk = config.optional_integer("attention_chunk_size")
    if len(full) < len(layers) and chunk is None:
        raise config.error("layers have chunks, but there is no attention_chunk_size")
    temperature = None
    if config.flag("attn_temperature_tuning"):
        floor = config.number("floor_scale", least=1e-9)
        temperature = Temperature(scale=config.number("attn_scale"), floor=floor)
    bias = attention.attention_bias(config)
    still = attention.grouped_query(config, **bias, temperature=temperature)
    turned = attention.grouped_query(
        config,
        **bias,
        rope=read_rope(config, head_dim=head_dim_of(config), interleaved=True),
        qk_norm="unweighted" if config.flag("use_qk_norm") else None,
    )
    return {
        "attentions": tuple(
            replace(turned if turns[layer] else still, chunk=None if layer in full else chunk)
            for layer in layers
        )
    }


def _weighed_experts(config: ConfigReader) -> Fields:
    """Experts that read weighed rows, a shared one, and dense layers between."""
    layers, step = range(config.integer("num_hidden_layers")), "interleave_moe_layer_step"
    with_experts = set(layers[config.integer(step) - 1 :: config.integer(step)])
    if config.get("moe_layers") is not None:
        with_experts = set(config.items("moe_layers"))
    return local_experts(config) | {
        "routing": Routing(scores="sigmoid", normalize=False, weighs_inputs=True),
        "shared_expert_size": config.integer("intermediate_size"),
        "intermediate_size": config.integer("intermediate_size_mlp"),
        "dense_layers": tuple(layer for layer in layers if layer not in with_experts),
    }


_TEXT: Final = Family(
    model_type="llama4_text",
    defaults=sizes(48, 5120, 40, 8, 8192)
    | {
        "vocab_size": 202048,
        "intermediate_size_mlp": 16384,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 2,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "rope_theta": 500000.0,
    },
    parts=(_chunked_attention, _weighed_experts),
    names=TensorNames(
        feed_forward="feed_forward",
        router="router",
        shared_experts="shared_expert",
        experts=Stacked(),
    ),
)

FAMILIES: Final = (
    _TEXT,
    _TEXT.beside_images(
        "llama4",
        model="language_model.model",
        ignored=("vision_model.", "multi_modal_projector."),
    ),
)

_COMMON: Final = {"model_type": "llama4_text", "eos_token_id": [200001, 200007, 200008]}

MODELS: Final[dict[str, Config]] = {
    "llama-4-scout": _COMMON
    | {
        "max_position_embeddings": 10485760,
        "rope_scaling": llama3_rope(16.0) | {"high_freq_factor": 1.0},
    },
    "llama-4-maverick": _COMMON
    | {
        "max_position_embeddings": 1048576,
        "num_local_experts": 128,
        "interleave_moe_layer_step": 2,
        "use_qk_norm": False,
    },
}
