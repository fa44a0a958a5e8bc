"""Qwen3-Next and Qwen3.5: three gated delta nets, then one gated full attention."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary.attention_kinds import GatedDelta
from weft.vocabulary.config_parts import ACTIVATIONS, Fields
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.expert_parts import all_experts, sparse_experts
from weft.vocabulary.families.family import Config, Family, experts, sizes
from weft.vocabulary.tensor_names import TensorNames

_DELTA: Final = {"full_attention": True, "linear_attention": False}


def _delta_attention(config: ConfigReader, *, by_key_head: bool = False) -> Fields:
    full = attention.full_or_every(config, _DELTA, config.integer("full_attention_interval"))
    given = attention.partial_rope(config) | attention.attention_bias(config)
    gated = attention.grouped_query(config, **given, qk_norm="heads", output_gate=True)
    keys, values = (config.integer(f"linear_num_{which}_heads") for which in ("key", "value"))
    if values % keys:
        raise config.error(f"linear_num_value_heads {values}: must be a multiple of {keys}")
    delta = GatedDelta(
        num_key_heads=keys,
        num_value_heads=values,
        key_dim=config.integer("linear_key_head_dim"),
        value_dim=config.integer("linear_value_head_dim"),
        kernel_size=config.integer("linear_conv_kernel_dim", least=2),
        activation=config.choice("hidden_act", ACTIVATIONS),
        by_key_head=by_key_head,
    )
    layers = range(config.integer("num_hidden_layers"))
    return {
        "attentions": tuple(gated if layer in full else delta for layer in layers),
        "norm_weight_offset": 1.0,
    }


def _gated_shared_expert(config: ConfigReader) -> Fields:
    size = config.integer("shared_expert_intermediate_size")
    return {"shared_expert_size": size, "shared_expert_gate": True}


_TEXT: Final = Family(
    model_type="qwen3_5_text",
    defaults={
        "vocab_size": 248320,
        "intermediate_size": 12288,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    },
    parts=(_delta_attention,),
    names=TensorNames(shared_experts="shared_expert", ignored=("mtp.",)),
)

_MOE_TEXT: Final = replace(
    _TEXT,
    model_type="qwen3_5_moe_text",
    defaults={
        **_TEXT.defaults,
        **sizes(40, 2048, 16, 2, 512),
        **experts(256, 8, 512),
        "shared_expert_intermediate_size": 512,
    },
    parts=(_delta_attention, all_experts, _gated_shared_expert),
)

_NEXT: Final = replace(
    _MOE_TEXT,
    model_type="qwen3_next",
    defaults={
        **_MOE_TEXT.defaults,
        **experts(512, 10, 512),
        "vocab_size": 151936,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
    },
    parts=(partial(_delta_attention, by_key_head=True), sparse_experts, _gated_shared_expert),
)


def _beside_images(text: Family) -> Family:
    return text.beside_images(
        text.model_type.removesuffix("_text"),
        model="model.language_model",
        head="lm_head",
        ignored=("model.visual.", "mtp."),
    )


FAMILIES: Final = (_NEXT, _TEXT, _beside_images(_TEXT), _MOE_TEXT, _beside_images(_MOE_TEXT))

_COMMON: Final = {"rope_theta": 1e7, "max_position_embeddings": 262144}

MODELS: Final[dict[str, Config]] = {
    "qwen3-next-80b-a3b": _COMMON | {"model_type": "qwen3_next", "eos_token_id": 151645},
    "qwen3.5-27b": _COMMON
    | sizes(64, 5120, 24, 4, 17408)
    | {"model_type": "qwen3_5_text", "linear_num_value_heads": 48, "eos_token_id": 248044},
    "qwen3.5-397b-a17b": _COMMON
    | sizes(60, 4096, 32, 2, 1024)
    | experts(512, 10, 1024)
    | {
        "model_type": "qwen3_5_moe_text",
        "shared_expert_intermediate_size": 1024,
        "linear_num_value_heads": 64,
        "eos_token_id": 248044,
    },
}
