"""From the kinds of a spec to the modules that compute them: the one place that knows both."""

from __future__ import annotations

from torch import nn

from weft.layers.expert_exchange import ExpertExchange
from weft.layers.linear import Placement
from weft.layers.shared_norm import NormSums
from weft.models.dense import DenseFeedForward
from weft.models.experts import MixtureOfExperts
from weft.models.gated_delta import GatedDeltaNet
from weft.models.grouped_query import GroupedQueryAttention
from weft.models.latent_attention import LatentAttention
from weft.vocabulary.attention_kinds import GroupedQuery, Latent
from weft.vocabulary.families import names_of
from weft.vocabulary.feed_forward_kinds import Dense
from weft.vocabulary.model_spec import ModelSpec

Attention = GroupedQueryAttention | LatentAttention | GatedDeltaNet


def build_attention(
    spec: ModelSpec, layer: int, prefix: str, norm_sums: NormSums | None, where: Placement
) -> Attention:
    """The attention of one layer: rows [T, h] of a step and a cache -> partial sum [T, h]."""
    kind = spec.attention(layer)
    prefix = f"{prefix}.{getattr(names_of(spec), kind.part)}"
    if isinstance(kind, GroupedQuery):
        return GroupedQueryAttention(kind, spec, prefix, norm_sums, where)
    if isinstance(kind, Latent):
        return LatentAttention(kind, spec, prefix, where)
    return GatedDeltaNet(kind, spec, prefix, where)


def build_feed_forward(
    spec: ModelSpec, layer: int, prefix: str, exchange: ExpertExchange | None, where: Placement
) -> nn.Module:
    """The feed-forward part of one layer: rows [T, h] -> partial sum [T, h]."""
    kind = spec.feed_forward(layer)
    if isinstance(kind, Dense):
        return DenseFeedForward(kind, spec.hidden_size, prefix, where)
    assert exchange is not None
    return MixtureOfExperts(kind, spec, prefix, exchange, where)
