"""What experts and their routing read from config.json in more than one family."""

from __future__ import annotations

from weft.vocabulary.config_parts import Fields
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.feed_forward_kinds import Routing


def local_experts(config: ConfigReader) -> Fields:
    """``num_local_experts`` in every layer, whose weights add up to 1."""
    return _experts(config, "num_local_experts", "intermediate_size", normalize=True)


def all_experts(config: ConfigReader) -> Fields:
    """``num_experts`` in every layer, whose weights add up to 1."""
    return _experts(config, "num_experts", "moe_intermediate_size", normalize=True)


def sparse_experts(config: ConfigReader) -> Fields:
    """Experts in every ``decoder_sparse_step``-th layer but ``mlp_only_layers``."""
    step, dense = config.integer("decoder_sparse_step"), config.items("mlp_only_layers")
    layers = range(config.integer("num_hidden_layers"))
    normalize = config.flag("norm_topk_prob")
    fields = _experts(config, "num_experts", "moe_intermediate_size", normalize=normalize)
    return fields | {"dense_layers": tuple(i for i in layers if i in dense or (i + 1) % step)}


def experts_with_shared(config: ConfigReader) -> Fields:
    """Experts from layer ``first_k_dense_replace`` on, with shared ones beside them."""
    num_layers = config.integer("num_hidden_layers")
    fields = _experts(config, "n_routed_experts", "moe_intermediate_size", normalize=False)
    dense = min(config.integer("first_k_dense_replace", least=0), num_layers)
    size = config.integer("n_shared_experts", least=0) * config.integer("moe_intermediate_size")
    return fields | {"dense_layers": tuple(range(dense)), "shared_expert_size": size}


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


def sigmoid_routing(config: ConfigReader) -> Fields:
    """Sigmoid scores, a correction of each expert in the choice, groups."""
    groups, chosen = expert_groups(config)
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


def expert_groups(config: ConfigReader) -> tuple[int, int]:
    """Groups of experts, and those of which a token takes its experts."""
    groups, chosen = config.integer("n_group"), config.integer("topk_group")
    experts = config.integer("n_routed_experts")
    open_experts = chosen * experts // groups
    if experts % groups or chosen > groups or config.integer("num_experts_per_tok") > open_experts:
        raise config.error(
            f"n_group {groups}, topk_group {chosen}: must divide the experts and hold the choice"
        )
    return groups, chosen
