"""Multi-head latent attention (DeepSeek-V2 and V3), absorbed: heads attend to the latents.

A head's keys are its up-projection of the cached latents, so scores can be had by projecting
the query down instead; values likewise. Keys and values of the heads are never made.

Shapes: T token rows, h hidden size, H query heads of this rank, N and R elements of a query
without and with rotary embedding, C elements of a latent, V elements of a value.
Source: DeepSeek-V2 (arXiv:2405.04434), section 2.1 and appendix C.
"""

from __future__ import annotations

import torch
from torch import nn

from weft.layers.attention import AttentionStep, LatentCache, PlainAttention, Scores
from weft.layers.linear import ColumnParallelLinear, MatrixPart, Placement, RowParallelLinear
from weft.layers.norm import RMSNorm
from weft.layers.rope import rotate
from weft.vocabulary.attention_kinds import Latent
from weft.vocabulary.model_spec import ModelSpec


class LatentAttention(nn.Module):
    """Token rows [T, h] -> partial sum [T, h] over this rank's heads.

    Down-projections, their norms and the cache are whole on every rank.
    """

    def __init__(self, kind: Latent, spec: ModelSpec, prefix: str, where: Placement) -> None:
        super().__init__()
        self.kind, self.num_heads = kind, kind.num_heads // where.tp_size
        hidden, query = spec.hidden_size, kind.num_heads * (kind.nope_dim + kind.rope_dim)
        down = [_whole(f"{prefix}.kv_a_proj_with_mqa", kind.kv_rank + kind.rope_dim)]
        self.query_norm: RMSNorm | None = None
        query_name, query_input = f"{prefix}.q_proj", hidden
        if kind.q_rank is not None:
            down.append(_whole(f"{prefix}.q_a_proj", kind.q_rank))
            self.query_norm = RMSNorm(f"{prefix}.q_a_layernorm", kind.q_rank, kind.norm_eps, where)
            query_name, query_input = f"{prefix}.q_b_proj", kind.q_rank
        self.down = ColumnParallelLinear(hidden, down, bias=kind.bias, where=where)
        self.query = _by_heads(query_name, query_input, query, where)
        self.latent_norm = RMSNorm(f"{prefix}.kv_a_layernorm", kind.kv_rank, kind.norm_eps, where)
        both = kind.num_heads * (kind.nope_dim + kind.v_dim)
        self.up = _by_heads(f"{prefix}.kv_b_proj", kind.kv_rank, both, where)
        values = kind.num_heads * kind.v_dim
        self.output = RowParallelLinear(
            f"{prefix}.o_proj", values, hidden, bias=kind.bias, where=where
        )

    def make_cache(self, num_slots: int, num_rows: int, like: torch.Tensor) -> LatentCache:  # noqa: ARG002
        """Room for latents and rotary keys of ``num_slots`` positions."""
        return LatentCache(num_slots, self.kind.kv_rank + self.kind.rope_dim, like)

    def forward(self, x: torch.Tensor, step: AttentionStep, cache: LatentCache) -> torch.Tensor:
        assert isinstance(step, PlainAttention)
        kind = self.kind
        assert kind.rope is not None
        latent, rotary_key, *query_latent = self.down(x).split(
            [kind.kv_rank, kind.rope_dim, *([kind.q_rank] if kind.q_rank else [])], dim=1
        )
        rotary_key = rotate(rotary_key[:, None], kind.rope, step.angles)
        row = torch.cat((self.latent_norm(latent)[:, None], rotary_key), dim=2)
        cache.latents.index_copy_(0, step.slots, row)
        to_keys, to_values = self._up_projections()
        queries = self._queries(x, query_latent, step, to_keys)
        values = cache.latents[..., : kind.kv_rank]
        scores = Scores(scale=kind.scale, window=kind.window)
        mixed = step.attend(queries, cache.latents, values, scores)
        heads = torch.einsum("thc,hvc->thv", mixed, to_values)
        partial: torch.Tensor = self.output(heads.flatten(1))
        return partial

    def _up_projections(self) -> tuple[torch.Tensor, torch.Tensor]:
        """From a latent to the keys [H, N, C] and to the values [H, V, C] of each head."""
        weight = self.up.matrix.part(slice(None)).unflatten(0, (self.num_heads, -1))
        to_keys, to_values = weight.split([self.kind.nope_dim, self.kind.v_dim], dim=1)
        return to_keys, to_values

    def _queries(
        self,
        x: torch.Tensor,
        query_latent: list[torch.Tensor],
        step: PlainAttention,
        to_keys: torch.Tensor,
    ) -> torch.Tensor:
        """Queries [T, H, C + R] against latents and rotary keys."""
        assert self.kind.rope is not None
        if self.query_norm is not None:
            x = self.query_norm(query_latent[0])
        sizes = [self.kind.nope_dim, self.kind.rope_dim]
        plain, rotary = self.query(x).unflatten(1, (self.num_heads, -1)).split(sizes, dim=2)
        absorbed = torch.einsum("thn,hnc->thc", plain, to_keys)
        return torch.cat((absorbed, rotate(rotary, self.kind.rope, step.angles)), dim=2)


def _whole(name: str, out_features: int) -> MatrixPart:
    return MatrixPart(name=name, out_features=out_features, part=0, num_parts=1)


def _by_heads(
    name: str, in_features: int, out_features: int, where: Placement
) -> ColumnParallelLinear:
    section = MatrixPart(
        name=name, out_features=out_features, part=where.tp_rank, num_parts=where.tp_size
    )
    return ColumnParallelLinear(in_features, [section], bias=False, where=where)
