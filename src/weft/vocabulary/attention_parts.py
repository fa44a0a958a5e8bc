"""What attention reads from config.json: ropes, windows, norms, kinds by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from weft.vocabulary.attention_kinds import GatedDelta, GroupedQuery, Latent, Temperature
from weft.vocabulary.config_parts import ACTIVATIONS, Fields, head_dim_of
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.rope import Rope, YarnScaling
from weft.vocabulary.rope_config import read_rope, rope_of


def rope(config: ConfigReader) -> Fields:
    return {"rope": read_rope(config, head_dim=head_dim_of(config))}


def partial_rope(config: ConfigReader) -> Fields:
    """A rope that turns ``partial_rotary_factor`` of each head."""
    return {"rope": read_rope(config, head_dim=head_dim_of(config), partial=True)}


def attention_bias(config: ConfigReader) -> Fields:
    bias = config.flag("attention_bias")
    return {"qkv_bias": bias, "output_bias": bias}


def qkv_bias(config: ConfigReader) -> Fields:  # noqa: ARG001
    return {"qkv_bias": True}


def optional_qkv_bias(config: ConfigReader) -> Fields:
    return {"qkv_bias": config.flag("attention_bias")}


def optional_qk_norm(config: ConfigReader) -> Fields:
    return {"qk_norm": config.flag("use_qk_norm")}


def qk_norm(config: ConfigReader) -> Fields:  # noqa: ARG001
    return {"qk_norm": True}


def window(config: ConfigReader) -> Fields:
    """One window for all layers."""
    return {"sliding_window": config.optional_integer("sliding_window")}


def switched_window(config: ConfigReader) -> Fields:
    """One window for all layers where ``use_sliding_window`` says so."""
    return window(config) if config.flag("use_sliding_window") else {}


def windows_by_layer(config: ConfigReader) -> Fields:
    """A window in the layers of ``layer_types``, or from ``max_window_layers`` on."""
    num_layers = config.integer("num_hidden_layers")
    fields = switched_window(config)
    window = fields.get("sliding_window")
    if config.has("layer_types"):
        full = full_layers(config, _WINDOWS)
        if len(full) < num_layers and window is None:
            raise config.error("layer_types has sliding_attention, but no sliding_window is used")
    else:
        first = config.integer("max_window_layers", least=0) if window else num_layers
        full = tuple(range(min(first, num_layers)))
    return {"sliding_window": window, "full_layers": full} if window else {}


_WINDOWS: Final = {"full_attention": True, "attention": True, "sliding_attention": False}


def full_layers(config: ConfigReader, known: Mapping[str, bool]) -> tuple[int, ...]:
    """The layers whose ``layer_types`` are full attention in ``known``, which lists them all."""
    types, num_layers = config.items("layer_types"), config.integer("num_hidden_layers")
    if len(types) != num_layers:
        raise config.error(
            f"layer_types has {len(types)} layers, num_hidden_layers is {num_layers}"
        )
    for kind in types:
        if not isinstance(kind, str) or kind not in known:
            raise config.error(f"layer type {kind!r} is not supported; weft has {', '.join(known)}")
    return tuple(layer for layer, kind in enumerate(types) if known[kind])


def gemma_ropes(config: ConfigReader) -> Fields:
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


def gemma_windows(config: ConfigReader) -> Fields:
    """A window in all layers but every ``sliding_window_pattern``-th, or by ``layer_types``."""
    num_layers = config.integer("num_hidden_layers")
    window = config.optional_integer("sliding_window")
    if config.has("layer_types"):
        full = full_layers(config, _WINDOWS)
    else:
        pattern = config.integer("sliding_window_pattern")
        full = tuple(range(pattern - 1, num_layers, pattern))
    if len(full) < num_layers and window is None:
        raise config.error("layers slide, but there is no sliding_window")
    return {"sliding_window": window, "full_layers": full}


def gemma_norms(config: ConfigReader) -> Fields:
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


def latent(config: ConfigReader) -> Fields:
    """Latent attention as in DeepSeek-V2 and V3."""
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


def _grouped_query(config: ConfigReader, **features: Any) -> GroupedQuery:
    heads = config.integer("num_attention_heads")
    return GroupedQuery(
        num_heads=heads,
        num_kv_heads=config.optional_integer("num_key_value_heads") or heads,
        head_dim=head_dim_of(config),
        **features,
    )


def sink_attention(config: ConfigReader) -> Fields:
    """gpt-oss: sinks, and a window in every layer that ``layer_types`` says, or in every second."""
    full = _full_or_every(config, _WINDOWS, 2)
    layers = range(config.integer("num_hidden_layers"))
    window = config.optional_integer("sliding_window")
    if len(full) < len(layers) and window is None:
        raise config.error("layers slide, but there is no sliding_window")
    kind = _grouped_query(config, **rope(config), **attention_bias(config), sinks=True)
    local = replace(kind, window=window)
    return {"attentions": tuple(kind if layer in full else local for layer in layers)}


def _full_or_every(config: ConfigReader, known: Mapping[str, bool], step: int) -> tuple[int, ...]:
    """The layers of full attention by ``layer_types``, or every ``step``-th."""
    if config.has("layer_types"):
        return full_layers(config, known)
    return tuple(range(step - 1, config.integer("num_hidden_layers"), step))


def normed_attention(config: ConfigReader) -> Fields:
    """MiniMax-M2: norms over all heads, a part of each head turned (``rotary_dim``)."""
    head_dim, size = head_dim_of(config), config.optional_integer("rotary_dim")
    default = {} if size is None else {"partial_rotary_factor": size / head_dim}
    turned = read_rope(config, head_dim=head_dim, partial=True, default=default)
    return {"attentions": (_grouped_query(config, rope=turned, qk_norm="all_heads"),)}


_DELTA: Final = {"full_attention": True, "linear_attention": False}


def delta_attention(config: ConfigReader, *, by_key_head: bool = False) -> Fields:
    """Qwen3-Next and Qwen3.5: a gated delta net in all layers but those of full attention."""
    full = _full_or_every(config, _DELTA, config.integer("full_attention_interval"))
    given = partial_rope(config) | attention_bias(config)
    gated = _grouped_query(config, **given, qk_norm="heads", output_gate=True)
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


def chunked_attention(config: ConfigReader) -> Fields:
    """Llama 4: chunks by ``layer_types``; layers that turn nothing have a temperature."""
    layers = range(config.integer("num_hidden_layers"))
    interval = config.integer("no_rope_layer_interval")
    turns = config.items("no_rope_layers") or [(layer + 1) % interval for layer in layers]
    if len(turns) < len(layers):
        raise config.error(f"no_rope_layers has {len(turns)} layers, fewer than the model")
    full = tuple(layer for layer in layers if not turns[layer])
    if config.has("layer_types"):
        full = full_layers(config, {"full_attention": True, "chunked_attention": False})
    chunk = config.optional_integer("attention_chunk_size")
    if len(full) < len(layers) and chunk is None:
        raise config.error("layers have chunks, but there is no attention_chunk_size")
    temperature = None
    if config.flag("attn_temperature_tuning"):
        floor = config.number("floor_scale", least=1e-9)
        temperature = Temperature(scale=config.number("attn_scale"), floor=floor)
    still = _grouped_query(config, **attention_bias(config), temperature=temperature)
    turned = _grouped_query(
        config,
        **attention_bias(config),
        rope=read_rope(config, head_dim=head_dim_of(config), interleaved=True),
        qk_norm="unweighted" if config.flag("use_qk_norm") else None,
    )
    return {
        "attentions": tuple(
            replace(turned if turns[layer] else still, chunk=None if layer in full else chunk)
            for layer in layers
        )
    }
