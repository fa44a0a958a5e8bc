"""Experts: routed ones, of which a token sees a few, and a shared one that sees every token.

Shapes: R token rows, h hidden size, E experts, k experts a token, e experts of this
rank, i intermediate size of an expert on this rank.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from weft.layers.activation import ACTIVATIONS
from weft.layers.expert_exchange import ExpertExchange
from weft.layers.linear import Placement
from weft.layers.shards import Piece, rows_of
from weft.models.dense import DenseFeedForward
from weft.models.routing import Router
from weft.vocabulary.families import names_of
from weft.vocabulary.feed_forward_kinds import Experts
from weft.vocabulary.model_spec import ModelSpec


class RoutedExperts(nn.Module):
    """Rows [R, h] and gates [R, e] -> gated sum of down(act(gate(x)) * up(x)), [R, h].

    A rank that holds all experts holds its tensor-parallel slice of each; one that holds
    some of them holds those whole.
    """

    def __init__(
        self,
        kind: Experts,
        hidden_size: int,
        prefix: str,
        names: tuple[str, str, str],
        experts: range,
        where: Placement,
    ) -> None:
        super().__init__()
        gate, up, down = names
        hidden, inner = hidden_size, kind.intermediate_size
        start, stop = 0, inner
        if len(experts) == kind.num_experts:
            start, stop = rows_of(inner, where.tp_rank, where.tp_size)
        self.num_experts, self.width = len(experts), stop - start
        self.activation = ACTIVATIONS[kind.activation]
        self.most_per_row = min(kind.experts_per_token, len(experts))
        rows, columns = [], []
        for place, expert in enumerate(experts):
            name = f"{prefix}.{expert}"
            for half, matrix in enumerate((gate, up)):
                at = (2 * place + half) * self.width
                rows.append(_part(f"{name}.{matrix}.weight", (inner, hidden), 0, start, stop, at))
            at = place * self.width
            columns.append(_part(f"{name}.{down}.weight", (hidden, inner), 1, start, stop, at))
        count = self.num_experts * self.width
        self.gate_up = where.stored((2 * count, hidden), rows)
        self.down = where.stored((hidden, count), columns)

    def forward(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu":
            return self.each_on_its_rows(x, gates)
        if x.device.type == "cuda" and x.dtype == torch.bfloat16:
            return self.grouped(x, gates)
        return self.each_on_all_rows(x, gates)

    def each_on_its_rows(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """Sizes come from the values: for the CPU."""
        out = torch.zeros_like(x)
        for expert in range(self.num_experts):
            rows = gates[:, expert].nonzero()[:, 0]
            if len(rows):
                weighted = self._expert(expert, x[rows]) * gates[rows, expert, None]
                out.index_add_(0, rows, weighted.to(out.dtype))
        return out

    def each_on_all_rows(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """Sizes are known before the values: for dry runs."""
        out = torch.zeros_like(x)
        for expert in range(self.num_experts):
            out += (self._expert(expert, x) * gates[:, expert, None]).to(out.dtype)
        return out

    def grouped(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """One grouped matrix product for all experts, no sizes on the host (bf16)."""
        expert_of, row_of = self._by_expert(gates)
        ends = torch.searchsorted(
            expert_of, torch.arange(self.num_experts, device=x.device), right=True
        ).int()
        gate_up = (
            self.gate_up.part(slice(None)).view(self.num_experts, -1, x.shape[1]).transpose(1, 2)
        )
        down = self.down.part(slice(None)).view(x.shape[1], self.num_experts, -1).permute(1, 2, 0)
        gate, up = F.grouped_mm(x[row_of], gate_up, offs=ends).chunk(2, dim=1)
        outputs = F.grouped_mm(self.activation(gate) * up, down, offs=ends)
        is_real = expert_of < self.num_experts
        weights = gates[row_of, expert_of.clamp(max=self.num_experts - 1)] * is_real
        outputs = outputs.masked_fill(~is_real[:, None], 0)
        return torch.zeros_like(x).index_add_(0, row_of, (outputs * weights[:, None]).to(x.dtype))

    def _by_expert(self, gates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(expert, row) of every gate that is not zero, by expert; places left over say expert e."""
        used = gates.t() != 0
        experts = torch.arange(self.num_experts, device=gates.device)[:, None].expand_as(used)
        marked = torch.where(used, experts, self.num_experts).flatten()
        expert_of, order = marked.sort(stable=True)
        most = len(gates) * self.most_per_row
        return expert_of[:most], order[:most] % len(gates)

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        at, width = expert * self.width, self.width
        both = self.gate_up.part(slice(2 * at, 2 * (at + width)))
        gate, up = F.linear(x, both).chunk(2, dim=1)
        down = self.down.part(slice(None), slice(at, at + width))
        return F.linear(self.activation(gate) * up, down)


class MixtureOfExperts(nn.Module):
    """Token rows [R, h] -> [R, h], a partial sum wherever the experts are split or elsewhere.

    The shared expert is split like the rows' sums: over the group where all ranks have all
    rows, and whole where each rank finishes its own.
    """

    def __init__(
        self,
        kind: Experts,
        spec: ModelSpec,
        prefix: str,
        exchange: ExpertExchange,
        where: Placement,
    ) -> None:
        super().__init__()
        names, hidden = names_of(spec), spec.hidden_size
        self.site, self.exchange = prefix.removeprefix("model."), exchange
        self.router = Router(kind, hidden, f"{prefix}.gate", where)
        self.experts = RoutedExperts(
            kind, hidden, f"{prefix}.experts", names.experts, exchange.experts, where
        )
        self.shared = None
        if kind.shared is not None:
            place = where if exchange.adds_up else where.alone
            name = f"{prefix}.{names.shared_experts}"
            self.shared = DenseFeedForward(kind.shared, hidden, name, place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, gates = self.exchange.dispatch(x, self.router(x), self.site)
        out = self.exchange.combine(self.experts(rows, gates), self.site)
        return out if self.shared is None else out + self.shared(x)


def _part(name: str, shape: tuple[int, int], dim: int, start: int, stop: int, at: int) -> Piece:
    return Piece(source=name, shape=shape, dim=dim, start=start, stop=stop, at=at)
