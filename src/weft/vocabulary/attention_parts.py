"""What attention reads from config.json in more than one family: ropes, windows, biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from weft.vocabulary.attention_kinds import GroupedQuery
from weft.vocabulary.config_parts import Fields, head_dim_of
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.rope_config import read_rope


def rope(config: ConfigReader) -> Fields:
    return {"rope": read_rope(config, head_dim=head_dim_of(config))}


def partial_rope(config: ConfigReader) -> Fields:
    """A rope that turns ``partial_rotary_factor`` of each head."""
    return {"rope": read_rope(config, head_dim=head_dim_of(config), partial=True)}


def attention_bias(config: ConfigReader) -> Fields:
    bias = config.flag("attention_bias")
    return {"qkv_bias": bias, "output_bias": bias}


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


def window_and_full_layers(
    config: ConfigReader, step: int | str
) -> tuple[int | None, tuple[int, ...]]:
    """The window and the layers without it: those of ``layer_types``, or every ``step``-th."""
    full = full_or_every(config, _WINDOWS, step)
    window = config.optional_integer("sliding_window")
    if len(full) < config.integer("num_hidden_layers") and window is None:
        raise config.error("layers slide, but there is no sliding_window")
    return window, full


def full_or_every(
    config: ConfigReader, known: Mapping[str, bool], step: int | str
) -> tuple[int, ...]:
    """The layers of full attention by ``layer_types``, or every ``step``-th (or what it names)."""
    if config.has("layer_types"):
        return full_layers(config, known)
    step = config.integer(step) if isinstance(step, str) else step
    return tuple(range(step - 1, config.integer("num_hidden_layers"), step))


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


def grouped_query(config: ConfigReader, **features: Any) -> GroupedQuery:
    heads = config.integer("num_attention_heads")
    return GroupedQuery(
        num_heads=heads,
        num_kv_heads=config.optional_integer("num_key_value_heads") or heads,
        head_dim=head_dim_of(config),
        **features,
    )
