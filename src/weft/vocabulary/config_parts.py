"""What the parts of a model read from config.json: one function a part, used by families.py.

Each returns fields of ModelSpec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from weft.vocabulary.attention_kinds import GatedDelta, GroupedQuery, Latent, Temperature
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.feed_forward_kinds import ClampedSwiglu, Routing
from weft.vocabulary.rope import Rope, YarnScaling
from weft.vocabulary.rope_config import read_rope, rope_of

Fields = dict[str, Any]

MAX_LAYERS: Final = 10_000

ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def sizes(config: ConfigReader) -> Fields:
    num_heads, hidden_size = config.integer("num_attention_heads"), config.integer("hidden_size")
    num_layers = config.integer("num_hidden_layers")
    if num_layers > MAX_LAYERS:
        raise config.error(f"num_hidden_layers {num_layers}: more than {MAX_LAYERS}")
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "num_kv_heads": config.optional_integer("num_key_value_heads") or num_heads,
        "head_dim": _head_dim(config),
        "intermediate_size": config.integer("intermediate_size"),
        "vocab_size": config.integer("vocab_size"),
        "tie_embeddings": config.flag("tie_word_embeddings"),
        "dtype": _dtype(config),
        "max_position": config.integer("max_position_embeddings"),
        "norm_eps": config.number("rms_norm_eps", least=0.0),
        "eos_token_ids": _eos_token_ids(config),
    }


def _head_dim(config: ConfigReader) -> int:
    given = config.optional_integer("head_dim")
    return given or config.integer("hidden_size") // config.integer("num_attention_heads")


def _dtype(config: ConfigReader) -> str:
    value = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if not isinstance(value, str):
        raise config.error(f"field 'dtype' is {value!r}, must be a string")
    return value.removeprefix("torch.")


def _eos_token_ids(config: ConfigReader) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) for item in values):
        raise config.error(f"field 'eos_token_id' is {value!r}, must be an integer or a list")
    return tuple(values)


def rope(config: ConfigReader) -> Fields:
    return {"rope": read_rope(config, head_dim=_head_dim(config))}


def partial_rope(config: ConfigReader) -> Fields:
    """A rope that turns ``partial_rotary_factor`` of each head."""
    return {"rope": read_rope(config, head_dim=_head_dim(config), partial=True)}


def attention_bias(config: ConfigReader) -> Fields:
    bias = config.flag("attention_bias")
    return {"qkv_bias": bias, "output_bias": bias}


def mlp_bias(config: ConfigReader) -> Fields:
    return {"mlp_bias": config.flag("mlp_bias")}


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


def mixtral_experts(config: ConfigReader) -> Fields:
    return _experts(config, "num_local_experts", "intermediate_size", normalize=True)


def qwen_experts(config: ConfigReader) -> Fields:
    """Experts in every ``decoder_sparse_step``-th layer but ``mlp_only_layers``."""
    step, dense = config.integer("decoder_sparse_step"), config.items("mlp_only_layers")
    num_layers = config.integer("num_hidden_layers")
    normalize = config.flag("norm_topk_prob")
    fields = _experts(config, "num_experts", "moe_intermediate_size", normalize=normalize)
    layers = range(num_layers)
    fields["dense_layers"] = tuple(i for i in layers if i in dense or (i + 1) % step)
    return fields


def _experts(config: ConfigReader, count: str, size: str, *, normalize: bool) -> Fields:
    num_experts, chosen = config.integer(count), config.integer("num_experts_per_tok")
    if chosen > num_experts:
        raise config.error(f"num_experts_per_tok {chosen}: more than the {num_experts} experts")
    return {
        "num_experts": num_experts,
        "experts_per_token": chosen,
        "expert_intermediate_size": config.integer(size),
        "routing": Routing(normalize=normalize),
    }


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
    return rope_of(config, given, head_dim=_head_dim(config))


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


def shared_experts(config: ConfigReader) -> Fields:
    """Experts from layer ``first_k_dense_replace`` on, with shared ones beside them."""
    num_layers = config.integer("num_hidden_layers")
    fields = _experts(config, "n_routed_experts", "moe_intermediate_size", normalize=False)
    dense = min(config.integer("first_k_dense_replace", least=0), num_layers)
    size = config.integer("n_shared_experts", least=0) * config.integer("moe_intermediate_size")
    return fields | {"dense_layers": tuple(range(dense)), "shared_expert_size": size}


def softmax_routing(config: ConfigReader) -> Fields:
    """DeepSeek-V2: softmax scores; only experts of the best groups, where the method says so."""
    config.refuse("norm_topk_prob")
    methods = {"greedy": "all", "group_limited_greedy": "groups"}
    groups, chosen = 1, 1
    if config.choice("topk_method", methods) == "groups":
        groups, chosen = _expert_groups(config)
    return {
        "routing": Routing(
            normalize=False,
            scale=config.number("routed_scaling_factor"),
            groups=groups,
            groups_per_token=chosen,
            fp32=True,
        )
    }


def sigmoid_routing(config: ConfigReader) -> Fields:
    """DeepSeek-V3: sigmoid scores, a correction of each expert in the choice, groups."""
    groups, chosen = _expert_groups(config)
    per_group = config.integer("n_routed_experts") // groups
    if groups > 1 and per_group < 2:
        raise config.error(f"n_group {groups}: leaves fewer than two experts a group")
    return {
        "routing": Routing(
            scores="sigmoid",
            normalize=config.flag("norm_topk_prob"),
            scale=config.number("routed_scaling_factor"),
            groups=groups,
            groups_per_token=chosen,
            corrected=True,
            fp32=True,
        )
    }


def _expert_groups(config: ConfigReader) -> tuple[int, int]:
    groups, chosen = config.integer("n_group"), config.integer("topk_group")
    experts = config.integer("n_routed_experts")
    open_experts = chosen * experts // groups
    if experts % groups or chosen > groups or config.integer("num_experts_per_tok") > open_experts:
        raise config.error(
            f"n_group {groups}, topk_group {chosen}: must divide the experts and hold the choice"
        )
    return groups, chosen


def _grouped_query(config: ConfigReader, **features: Any) -> GroupedQuery:
    heads = config.integer("num_attention_heads")
    return GroupedQuery(
        num_heads=heads,
        num_kv_heads=config.optional_integer("num_key_value_heads") or heads,
        head_dim=_head_dim(config),
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


def clamped_experts(config: ConfigReader) -> Fields:
    """gpt-oss: experts and router with biases, a clamped activation."""
    fields = _experts(config, "num_local_experts", "intermediate_size", normalize=True)
    gate = ClampedSwiglu(alpha=config.number("swiglu_alpha"), limit=config.number("swiglu_limit"))
    return fields | {"routing": Routing(bias=True), "expert_bias": True, "activation": gate}


def normed_attention(config: ConfigReader) -> Fields:
    """MiniMax-M2: norms over all heads, a part of each head turned (``rotary_dim``)."""
    head_dim, size = _head_dim(config), config.optional_integer("rotary_dim")
    default = {} if size is None else {"partial_rotary_factor": size / head_dim}
    turned = read_rope(config, head_dim=head_dim, partial=True, default=default)
    return {"attentions": (_grouped_query(config, rope=turned, qk_norm="all_heads"),)}


def corrected_experts(config: ConfigReader) -> Fields:
    """MiniMax-M2: sigmoid scores with a correction of each expert in the choice."""
    fields = _experts(config, "num_local_experts", "intermediate_size", normalize=True)
    return fields | {"routing": Routing(scores="sigmoid", corrected=True)}


_DELTA: Final = {"full_attention": True, "linear_attention": False}


def delta_attention(config: ConfigReader) -> Fields:
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
    )
    layers = range(config.integer("num_hidden_layers"))
    return {
        "attentions": tuple(gated if layer in full else delta for layer in layers),
        "norm_weight_offset": 1.0,
    }


def stacked_by_key_head(config: ConfigReader) -> Fields:
    """Qwen3-Next's projections stand head by head."""
    found: tuple[Any, ...] = delta_attention(config)["attentions"]
    return {
        "attentions": tuple(
            replace(kind, by_key_head=True) if isinstance(kind, GatedDelta) else kind
            for kind in found
        )
    }


def gated_shared_expert(config: ConfigReader) -> Fields:
    size = config.integer("shared_expert_intermediate_size")
    return {"shared_expert_size": size, "shared_expert_gate": True}


def all_experts(config: ConfigReader) -> Fields:
    """Experts in every layer, whose weights add up to 1."""
    return _experts(config, "num_experts", "moe_intermediate_size", normalize=True)


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
        rope=read_rope(config, head_dim=_head_dim(config), interleaved=True),
        qk_norm="unweighted" if config.flag("use_qk_norm") else None,
    )
    return {
        "attentions": tuple(
            replace(turned if turns[layer] else still, chunk=None if layer in full else chunk)
            for layer in layers
        )
    }


def weighed_experts(config: ConfigReader) -> Fields:
    """Llama 4: experts that read weighed rows, a shared one, and dense layers between."""
    fields = _experts(config, "num_local_experts", "intermediate_size", normalize=False)
    layers, step = range(config.integer("num_hidden_layers")), "interleave_moe_layer_step"
    with_experts = set(layers[config.integer(step) - 1 :: config.integer(step)])
    if config.get("moe_layers") is not None:
        with_experts = set(config.items("moe_layers"))
    return fields | {
        "routing": Routing(scores="sigmoid", normalize=False, weighs_inputs=True),
        "shared_expert_size": config.integer("intermediate_size"),
        "intermediate_size": config.integer("intermediate_size_mlp"),
        "dense_layers": tuple(layer for layer in layers if layer not in with_experts),
    }
