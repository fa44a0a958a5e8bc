"""What the parts of a model read from config.json: one function a part, used by families.py.

Each returns fields of ModelSpec.
"""

from __future__ import annotations

from typing import Any, Final

from weft.vocabulary.attention_kinds import Latent
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.feed_forward_kinds import Routing
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


def attention_bias(config: ConfigReader) -> Fields:
    bias = config.flag("attention_bias")
    return {"qkv_bias": bias, "output_bias": bias}


def mlp_bias(config: ConfigReader) -> Fields:
    return {"mlp_bias": config.flag("mlp_bias")}


def qkv_bias(config: ConfigReader) -> Fields:  # noqa: ARG001
    return {"qkv_bias": True}


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
    types = config.items("layer_types")
    fields = switched_window(config)
    window = fields.get("sliding_window")
    if config.has("layer_types"):
        full = full_layers(config, types, num_layers)
        if len(full) < num_layers and window is None:
            raise config.error("layer_types has sliding_attention, but no sliding_window is used")
    else:
        first = config.integer("max_window_layers", least=0) if window else num_layers
        full = tuple(range(min(first, num_layers)))
    return {"sliding_window": window, "full_layers": full} if window else {}


def full_layers(config: ConfigReader, types: Any, num_layers: int) -> tuple[int, ...]:
    """The layers that ``layer_types`` calls full_attention; the others must slide."""
    if len(types) != num_layers:
        raise config.error(
            f"layer_types has {len(types)} layers, num_hidden_layers is {num_layers}"
        )
    known = {"full_attention": True, "attention": True, "sliding_attention": False}
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
        full = full_layers(config, config.items("layer_types"), num_layers)
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
    return {"latent": kind, "rope": rope, "head_dim": rope_dim, "num_kv_heads": heads}


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
