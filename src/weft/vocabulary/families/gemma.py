"""Gemma 3: windows in five of six layers, two ropes, norms around the blocks."""

from __future__ import annotations

from typing import Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary.config_parts import Fields, head_dim_of
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.families.family import Config, Family, sizes
from weft.vocabulary.rope import Rope
from weft.vocabulary.rope_config import rope_of
from weft.vocabulary.tensor_names import TensorNames


def _ropes(config: ConfigReader) -> Fields:
    """One rope for layers that see everything, one with a smaller base for those that slide."""
    config.refuse("original_max_position_embeddings", "use_bidirectional_attention")
    given = config.mapping("rope_parameters")
    if set(given) - {"full_attention", "sliding_attention"}:
        raise config.error("rope_parameters must hold full_attention and sliding_attention")
    ropes = config.within(given, {})
    full = {"rope_theta": config.get("rope_theta")}
    full |= ropes.mapping("full_attention") or {"rope_type": "default"}
    local = {"rope_theta": config.get("rope_local_base_freq")}
    local |= ropes.mapping("sliding_attention")
    full |= config.mapping("rope_scaling")
    return {"rope": _rope_of_kind(config, full), "local_rope": _rope_of_kind(config, local)}


def _rope_of_kind(config: ConfigReader, given: Fields) -> Rope:
    """The library reads ``truncate`` beside the kinds of layers, where it never is."""
    given.pop("truncate", None)
    return rope_of(config, given, head_dim=head_dim_of(config))


def _windows(config: ConfigReader) -> Fields:
    """A window in all layers but every ``sliding_window_pattern``-th, or by ``layer_types``."""
    window, full = attention.window_and_full_layers(config, "sliding_window_pattern")
    return {"sliding_window": window, "full_layers": full}


def _norms(config: ConfigReader) -> Fields:
    """Norms around the blocks whose weights are offsets from one; scaled embedding and scores."""
    cap = config.optional_number("final_logit_softcapping")
    if cap is not None and cap <= 0:
        raise config.error(f"final_logit_softcapping is {cap}, must be above 0")
    return {
        "qk_norm": True,
        "norms_after_blocks": True,
        "norm_weight_offset": 1.0,
        "embedding_scale": config.integer("hidden_size") ** 0.5,
        "score_scale": config.number("query_pre_attn_scalar", least=1e-9) ** -0.5,
        "logit_cap": cap,
    }


_GEMMA3: Final = Family(
    model_type="gemma3_text",
    defaults=sizes(26, 2304, 8, 4, 9216)
    | {
        "vocab_size": 262208,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
    },
    parts=(_ropes, attention.attention_bias, _windows, _norms),
    names=TensorNames(
        feed_forward_norm="pre_feedforward_layernorm",
        after_attention="post_attention_layernorm",
        after_feed_forward="post_feedforward_layernorm",
    ),
    activation_key="hidden_activation",
)

FAMILIES: Final = (
    _GEMMA3,
    _GEMMA3.beside_images(
        "gemma3",
        model="language_model.model",
        ignored=("vision_tower.", "multi_modal_projector."),
    ),
)

_SHORT: Final = {"model_type": "gemma3_text", "sliding_window": 1024}
_LONG: Final = _SHORT | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}

MODELS: Final[dict[str, Config]] = {
    "gemma-3-1b": _SHORT
    | sizes(26, 1152, 4, 1, 6912)
    | {"vocab_size": 262144, "sliding_window": 512, "max_position_embeddings": 32768},
    "gemma-3-4b": _LONG | sizes(34, 2560, 8, 4, 10240),
    "gemma-3-12b": _LONG | sizes(48, 3840, 16, 8, 15360),
    "gemma-3-27b": _LONG
    | sizes(62, 5376, 32, 16, 21504)
    | {"head_dim": 128, "query_pre_attn_scalar": 168},
}
