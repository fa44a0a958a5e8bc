"""What experts and their routing read from config.json."""

from __future__ import annotations

from weft.vocabulary.config_parts import Fields
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.feed_forward_kinds import ClampedSwiglu, Routing


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


def clamped_experts(config: ConfigReader) -> Fields:
    """gpt-oss: experts and router with biases, a clamped activation."""
    fields = _experts(config, "num_local_experts", "intermediate_size", normalize=True)
    gate = ClampedSwiglu(alpha=config.number("swiglu_alpha"), limit=config.number("swiglu_limit"))
    return fields | {"routing": Routing(bias=True), "expert_bias": True, "activation": gate}


def corrected_experts(config: ConfigReader) -> Fields:
    """MiniMax-M2: sigmoid scores with a correction of each expert in the choice."""
    fields = _experts(config, "num_local_experts", "intermediate_size", normalize=True)
    return fields | {"routing": Routing(scores="sigmoid", corrected=True)}


def gated_shared_expert(config: ConfigReader) -> Fields:
    size = config.integer("shared_expert_intermediate_size")
    return {"shared_expert_size": size, "shared_expert_gate": True}


def all_experts(config: ConfigReader) -> Fields:
    """Experts in every layer, whose weights add up to 1."""
    return _experts(config, "num_experts", "moe_intermediate_size", normalize=True)


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
