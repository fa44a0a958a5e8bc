"""Gated delta net: linear attention whose state a sequence keeps instead of a cache.

Shapes: T token rows, S sequences of L rows, h hidden size, K and V key and value heads of this
rank, Dk and Dv elements of a key and a value, C = 2 K Dk + V Dv channels of the convolution, W its
width. Source: Yang et al. 2024 (arXiv:2412.06464), equation 10, in chunks by section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from weft.layers.activation import ACTIVATIONS
from weft.layers.attention import AttentionStep, PlainAttention, RecurrentCache
from weft.layers.linear import Placement, RowParallelLinear
from weft.layers.norm import RMSNorm
from weft.layers.shards import Piece, rows_of
from weft.vocabulary.attention_kinds import GatedDelta
from weft.vocabulary.model_spec import ModelSpec

_CHUNK: Final = 64


class Tokens(NamedTuple):
    """queries, keys [S, V, L, Dk], values [S, V, L, Dv], strengths and log decays [S, V, L]."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    strengths: torch.Tensor
    decays: torch.Tensor


class _Rows(NamedTuple):
    """Channels [T, C], strengths and log decays [T, V] in fp32; or by sequence, [S, L, ..]."""

    mixed: torch.Tensor
    strengths: torch.Tensor
    decays: torch.Tensor


class GatedDeltaNet(nn.Module):
    """Token rows [T, h] -> partial sum [T, h] over this rank's heads."""

    def __init__(self, kind: GatedDelta, spec: ModelSpec, prefix: str, where: Placement) -> None:
        super().__init__()
        self.kind, tp = kind, where.tp_size
        self.key_heads, self.value_heads = kind.num_key_heads // tp, kind.num_value_heads // tp
        heads, values = kind.num_value_heads, kind.output_size
        mixed = [kind.num_key_heads * kind.key_dim] * 2 + [values]
        projections = [("in_proj_qkv", mixed), ("in_proj_z", [values])]
        projections += [("in_proj_b", [heads]), ("in_proj_a", [heads])]
        if kind.by_key_head:
            projections = [("in_proj_qkvz", [sum(mixed) + values]), ("in_proj_ba", [2 * heads])]
        pieces = _shares(prefix, projections, (spec.hidden_size,), where)
        self.inputs = where.stored((_rows(pieces), spec.hidden_size), pieces)
        pieces = _shares(prefix, [("conv1d", mixed)], (1, kind.kernel_size), where)
        self.convolution = where.parameter((_rows(pieces), 1, kind.kernel_size), pieces)
        self.rates = where.parameter((heads // tp,), [_share(f"{prefix}.A_log", heads, where)])
        self.bias = where.parameter((heads // tp,), [_share(f"{prefix}.dt_bias", heads, where)])
        self.norm = RMSNorm(f"{prefix}.norm", kind.value_dim, spec.norm_eps, where)
        self.output = RowParallelLinear(
            f"{prefix}.out_proj", values, spec.hidden_size, bias=False, where=where
        )

    def make_cache(self, num_slots: int, num_rows: int, like: torch.Tensor) -> RecurrentCache:  # noqa: ARG002
        """Room for the states of ``num_rows`` sequences."""
        kind = self.kind
        state = (num_rows, self.value_heads, kind.key_dim, kind.value_dim)
        return RecurrentCache((num_rows, len(self.convolution), kind.kernel_size - 1), state, like)

    def forward(self, x: torch.Tensor, step: AttentionStep, cache: RecurrentCache) -> torch.Tensor:
        assert isinstance(step, PlainAttention)
        rows, gates = self._project(x)
        out = self._attend(rows, step, cache)
        normed = F.rms_norm(out, self.norm.weight.shape, self.norm.weight.float(), self.norm.eps)
        gated = (normed * F.silu(gates.float())).to(x).flatten(1)
        partial: torch.Tensor = self.output(gated)
        return partial

    def _project(self, x: torch.Tensor) -> tuple[_Rows, torch.Tensor]:
        """What the state sees of the rows, and the output gates [T, V, Dv]."""
        kind, rows = self.kind, self.inputs.product(x)
        values = self.value_heads * kind.value_dim
        if kind.by_key_head:
            rows, pairs = rows.split([len(self.convolution) + values, 2 * self.value_heads], dim=1)
            by_head, share = rows.unflatten(1, (self.key_heads, -1)), values // self.key_heads
            parts = by_head.split([kind.key_dim, kind.key_dim, share, share], dim=2)
            *mixed, gates = (part.flatten(1) for part in parts)
            rows = torch.cat(mixed, dim=1)
            halves = pairs.unflatten(1, (self.key_heads, -1)).chunk(2, dim=2)
            strengths, steps = (half.flatten(1) for half in halves)
        else:
            sizes = [len(self.convolution), values, self.value_heads, self.value_heads]
            rows, gates, strengths, steps = rows.split(sizes, dim=1)
        decays = -self.rates.float().exp() * F.softplus(steps.float() + self.bias.float())
        gates = gates.unflatten(1, (self.value_heads, kind.value_dim))
        return _Rows(rows, strengths.float().sigmoid(), decays), gates

    def _attend(self, every: _Rows, step: PlainAttention, cache: RecurrentCache) -> torch.Tensor:
        """[T, V, Dv] in fp32: all sequences at once where each has one row, else one by one."""
        if every.mixed.is_meta:
            shape = (len(every.mixed), self.value_heads, self.kind.value_dim)
            return every.decays.new_empty(shape)
        lengths = step.query_lengths
        starts = [end == length for end, length in zip(step.context_lengths, lengths, strict=True)]
        fresh = torch.tensor(starts, device=every.mixed.device)
        if max(lengths) == 1:
            every = _Rows(*(x[:, None] for x in every))
            return self._sequences(every, step.rows, fresh, cache)[:, 0]
        found = []
        for i, part in enumerate(zip(*(x.split(lengths) for x in every), strict=True)):
            one, row = slice(i, i + 1), _Rows(*(x[None] for x in part))
            found.append(self._sequences(row, step.rows[one], fresh[one], cache)[0])
        return torch.cat(found)

    def _sequences(
        self, rows_of: _Rows, rows: torch.Tensor, fresh: torch.Tensor, cache: RecurrentCache
    ) -> torch.Tensor:
        """S sequences [S, L, ..] at the request rows [S] -> [S, L, V, Dv]; writes their states."""
        past = cache.inputs[rows].masked_fill(fresh[:, None, None], 0)
        state = cache.state[rows].masked_fill(fresh[:, None, None, None], 0)
        channels = torch.cat((past, rows_of.mixed.transpose(1, 2)), dim=2)
        cache.inputs.index_copy_(0, rows, channels[..., -past.shape[2] :])
        mixed = F.conv1d(channels, self.convolution, groups=len(self.convolution))
        mixed = ACTIVATIONS[self.kind.activation](mixed).float()
        keys = self.key_heads * self.kind.key_dim
        parts = mixed.split([keys, keys, self.value_heads * self.kind.value_dim], dim=1)
        tokens = Tokens(
            queries=self._unit_vectors(parts[0]) * self.kind.key_dim**-0.5,
            keys=self._unit_vectors(parts[1]),
            values=parts[2].unflatten(1, (self.value_heads, -1)).transpose(2, 3),
            strengths=rows_of.strengths.transpose(1, 2),
            decays=rows_of.decays.transpose(1, 2),
        )
        out, state = delta_rule(tokens, state)
        cache.state.index_copy_(0, rows, state)
        return out.transpose(1, 2)

    def _unit_vectors(self, channels: torch.Tensor) -> torch.Tensor:
        """[S, K Dk, L] -> [S, V, L, Dk] of length 1, each key head for its value heads."""
        heads = channels.unflatten(1, (self.key_heads, -1)).transpose(2, 3)
        unit: torch.Tensor = heads * (heads.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()
        return unit.repeat_interleave(self.value_heads // self.key_heads, dim=1)


def delta_rule(tokens: Tokens, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs [S, V, L, Dv] and the state [S, V, Dk, Dv] after L tokens.

    Token by token: state *= exp(decay); state += key (strength (value - key state));
    out = query state.
    """
    outs = []
    for start in range(0, tokens.values.shape[2], _CHUNK):
        part = slice(start, start + _CHUNK)
        out, state = _chunk(Tokens(*(x[:, :, part] for x in tokens)), state)
        outs.append(out)
    return torch.cat(outs, dim=2), state


def _chunk(tokens: Tokens, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for a chunk: its corrections follow from a triangular system."""
    queries, keys, values, strengths, decays = tokens
    total = decays.cumsum(dim=2)[..., None]
    between = (total - total.transpose(2, 3)).tril().exp().tril()
    weighed = keys * strengths[..., None]
    system = (weighed @ keys.transpose(2, 3) * between).tril(-1)
    system = system + torch.eye(system.shape[-1], device=system.device)
    sides = torch.cat((values * strengths[..., None], weighed * total.exp()), dim=3)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    wanted, known = solved.split([values.shape[3], keys.shape[3]], dim=3)
    corrections = wanted - known @ state
    out = (queries * total.exp()) @ state
    out = out + (queries @ keys.transpose(2, 3) * between) @ corrections
    last = total[:, :, -1:]
    state = state * last.exp() + (keys * (last - total).exp()).transpose(2, 3) @ corrections
    return out, state


def _shares(
    prefix: str, sources: Sequence[tuple[str, list[int]]], rest: tuple[int, ...], where: Placement
) -> list[Piece]:
    """This rank's share of every part of the tensors, one after the other."""
    found: list[Piece] = []
    for name, sizes in sources:
        for number, size in enumerate(sizes):
            start, stop = (sum(sizes[:number]) + row for row in _rows_of(size, where))
            found.append(
                Piece(
                    source=f"{prefix}.{name}.weight",
                    shape=(sum(sizes), *rest),
                    dim=0,
                    start=start,
                    stop=stop,
                    at=_rows(found),
                )
            )
    return found


def _share(name: str, size: int, where: Placement) -> Piece:
    start, stop = _rows_of(size, where)
    return Piece(source=name, shape=(size,), dim=0, start=start, stop=stop)


def _rows_of(size: int, where: Placement) -> tuple[int, int]:
    return rows_of(size, where.tp_rank, where.tp_size)


def _rows(pieces: Sequence[Piece]) -> int:
    return sum(piece.stop - piece.start for piece in pieces)
