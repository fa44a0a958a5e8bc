"""MiniMax-M2: norms over all heads, a part of each head turned, corrected sigmoid routing."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from weft.vocabulary import attention_parts as attention
from weft.vocabulary.config_parts import Fields, head_dim_of
from weft.vocabulary.config_reader import ConfigReader
from weft.vocabulary.expert_parts import local_experts
from weft.vocabulary.families.family import Config, Family, sizes
from weft.vocabulary.families.mistral import MIXTRAL
from weft.vocabulary.feed_forward_kinds import Routing
from weft.vocabulary.rope_config import read_rope


def _normed_attention(config: ConfigReader) -> Fields:
    head_dim, size = head_dim_of(config), config.optional_integer("rotary_dim")
    default = {} if size is None else {"partial_rotary_factor": size / head_dim}
    turned = read_rope(config, head_dim=head_dim, partial=True, default=default)
    return {"attentions": (attention.grouped_query(config, rope=turned, qk_norm="all_heads"),)}


def _corrected_experts(config: ConfigReader) -> Fields:
    return local_experts(config) | {"routing": Routing(scores="sigmoid", corrected=True)}


FAMILIES: Final = (
    Family(
        model_type="minimax_m2",
        defaults=sizes(62, 3072, 48, 8, 1536)
        | {
            "vocab_size": 200064,
            "head_dim": 128,
            "max_position_embeddings": 196608,
            "eos_token_id": 200020,
            "num_local_experts": 256,
            "num_experts_per_tok": 8,
            "rope_theta": 5e6,
        },
        parts=(_normed_attention, _corrected_experts),
        names=replace(MIXTRAL.names, correction="e_score_correction_bias"),
        aliases=MIXTRAL.aliases,
    ),
)

MODELS: Final[dict[str, Config]] = {"minimax-m2": {"model_type": "minimax_m2", "rotary_dim": 64}}
