"""Experts: routed ones, of which a token sees a few, and a shared one that sees every token.

Shapes: R token rows, h hidden size, E experts, k experts a token, e experts of this
rank, i intermediate size of an expert on this rank.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from weft.layers import fused
from weft.layers.activation import gated
from weft.layers.expert_exchange import ExpertExchange
from weft.layers.linear import Placement
from weft.layers.shards import Piece, rows_of
from weft.models.dense import DenseFeedForward
from weft.models.expert_tensors import ExpertTensors
from weft.models.routing import Router
from weft.vocabulary.families import names_of
from weft.vocabulary.feed_forward_kinds import Experts
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.routes import Routes
from weft.vocabulary.tensor_names import TensorNames

if TYPE_CHECKING:
    from weft.layers.fused.few_experts import ExpertWeights


class RoutedExperts(nn.Module):
    """Rows [R, h] and their routes -> weighted sums of down(act(gate(x)) * up(x)), [R, h].

    A rank that holds all experts holds its tensor-parallel slice of each; one that holds
    some of them holds those whole.
    """

    def __init__(
        self,
        kind: Experts,
        hidden_size: int,
        prefix: str,
        names: TensorNames,
        experts: range,
        where: Placement,
    ) -> None:
        super().__init__()
        hidden, inner = hidden_size, kind.intermediate_size
        start, stop = 0, inner
        if len(experts) == kind.num_experts:
            start, stop = rows_of(inner, where.tp_rank, where.tp_size)
        self.num_experts, self.width = len(experts), stop - start
        self.activation, self.weighs_inputs = kind.activation, kind.routing.weighs_inputs
        source = ExpertTensors(f"{prefix}.experts", names.experts, kind, hidden)
        rows, columns = [], []
        for place, expert in enumerate(experts):
            for half in (0, 1):
                at = (2 * place + half) * self.width
                rows.append(replace(source.half(expert, half), start=start, stop=stop, at=at))
            at = place * self.width
            columns.append(replace(source.down(expert), start=start, stop=stop, at=at))
        count = self.num_experts * self.width
        self.gate_up = where.stored((2 * count, hidden), rows, kind.format)
        self.down = where.stored((hidden, count), columns, kind.format)
        self.inner_bias = self.outer_bias = None
        if kind.bias:
            pieces = [
                replace(source.half_bias(expert, half), start=start, stop=stop, at=piece.at)
                for piece, (expert, half) in zip(rows, product(experts, (0, 1)), strict=True)
            ]
            self.inner_bias = where.parameter((2 * count,), pieces)
        if kind.bias and (where.tp_rank == 0 or len(experts) < kind.num_experts):
            pieces = [
                replace(source.down_bias(expert), at=place * hidden)
                for place, expert in enumerate(experts)
            ]
            self.outer_bias = where.parameter((self.num_experts * hidden,), pieces)

    def forward(self, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        if x.is_meta:  # a dry run has no values, and may have hundreds of experts
            return torch.empty_like(x)
        if x.device.type == "cpu":
            return self.each_on_its_rows(x, routes)
        if fused.takes(x):
            from weft.layers.fused import few_experts

            if few_experts.takes(x, routes, self.kernel_weights):
                return self.few(x, routes)
        if x.device.type == "cuda" and x.dtype == torch.bfloat16:
            return self.grouped(x, routes)
        return self.each_on_all_rows(x, routes)

    def few(self, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        """Our kernels, which read the weights of the experts that are taken once."""
        from weft.layers.fused.few_experts import few_experts
        from weft.layers.fused.products import workspace

        return few_experts(x, routes, self.kernel_weights, workspace=workspace(x.device))

    @property
    def kernel_weights(self) -> ExpertWeights:
        """The weights as the kernels of few rows take them."""
        from weft.layers.fused.few_experts import ExpertWeights

        return ExpertWeights(
            gate_up=self.gate_up.values,
            down=self.down.values,
            gate_up_scales=self.gate_up.scales,
            down_scales=self.down.scales,
            inner_bias=self.inner_bias,
            outer_bias=self.outer_bias,
            activation=self.activation,
            weighs_inputs=self.weighs_inputs,
        )

    def each_on_its_rows(self, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        """Sizes come from the values: for the CPU."""
        out = torch.zeros_like(x)
        for expert in routes.ids.unique().tolist():
            if expert < self.num_experts:
                rows, places = (routes.ids == expert).nonzero(as_tuple=True)
                weights = routes.weights[rows, places, None]
                out.index_add_(0, rows, self._weighted(expert, x[rows], weights).to(out.dtype))
        return out

    def each_on_all_rows(self, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        """Sizes are known before the values: for types that no grouped product takes."""
        out, gates = torch.zeros_like(x), routes.gates()
        for expert in range(self.num_experts):
            out += self._weighted(expert, x, gates[:, expert, None]).to(out.dtype)
        return out

    def grouped(self, x: torch.Tensor, routes: Routes) -> torch.Tensor:
        """One grouped matrix product for all experts, no sizes on the host (bf16)."""
        per_row = routes.ids.shape[1]
        expert_of, order = routes.ids.flatten().sort(stable=True)
        every = torch.arange(self.num_experts, device=x.device)
        ends = torch.searchsorted(expert_of, every, right=True).int()
        place = expert_of.clamp(max=self.num_experts - 1)
        weights = routes.weights.flatten()[order, None]
        rows = x[order // per_row]
        if self.weighs_inputs:
            rows = (rows * weights).to(x.dtype)
        count, hidden = self.num_experts, x.shape[1]
        gate_up = self.gate_up.part(slice(None)).view(count, -1, hidden).transpose(1, 2)
        down = self.down.part(slice(None)).view(hidden, count, -1).permute(1, 2, 0)
        products = F.grouped_mm(rows, gate_up, offs=ends)
        products = self._with_bias(products, self.inner_bias, place)
        if fused.takes(x) and self.activation == "silu":
            from weft.layers.fused.elementwise import silu_mul

            inner = silu_mul(products)
        else:
            inner = gated(self.activation, *products.chunk(2, dim=1))
        outputs = self._with_bias(F.grouped_mm(inner, down, offs=ends), self.outer_bias, place)
        places = torch.empty_like(order).scatter_(
            0, order, torch.arange(len(order), device=x.device)
        )
        if fused.takes(x):
            from weft.layers.fused.expert_sums import sum_of_slots

            return sum_of_slots(outputs, places, routes, weighs=not self.weighs_inputs)
        if not self.weighs_inputs:
            outputs = outputs * weights
        outputs = outputs.masked_fill((expert_of >= count)[:, None], 0)
        summed: torch.Tensor = outputs[places].unflatten(0, (-1, per_row)).sum(dim=1)
        return summed.to(x.dtype)

    def _with_bias(
        self, products: torch.Tensor, bias: torch.Tensor | None, place: torch.Tensor
    ) -> torch.Tensor:
        """Rows [.., O] of experts ``place`` [..] with their biases [e O]."""
        return (
            products
            if bias is None
            else products + bias.unflatten(0, (-1, products.shape[1]))[place]
        )

    def _weighted(self, expert: int, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """One expert on rows [R, h] with weights [R, 1]."""
        if self.weighs_inputs:
            return self._expert(expert, (x * weights).to(x.dtype)) * (weights != 0)
        return self._expert(expert, x) * weights

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        at, width, hidden = expert * self.width, self.width, x.shape[1]
        both = slice(2 * at, 2 * (at + width))
        inner_bias = None if self.inner_bias is None else self.inner_bias[both]
        gate, up = F.linear(x, self.gate_up.part(both), inner_bias).chunk(2, dim=1)
        down = self.down.part(slice(None), slice(at, at + width))
        outer = self.outer_bias
        outer_bias = None if outer is None else outer[expert * hidden : (expert + 1) * hidden]
        return F.linear(gated(self.activation, gate, up), down, outer_bias)


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
        self.router = Router(kind, hidden, prefix, names, where)
        self.experts = RoutedExperts(kind, hidden, prefix, names, exchange.experts, where)
        self.shared = self.shared_gate = None
        if kind.shared is not None:
            place = where if exchange.adds_up else where.alone
            name = f"{prefix}.{names.shared_experts}"
            self.shared = DenseFeedForward(kind.shared, hidden, name, place)
        if kind.shared_gate:
            gate = f"{prefix}.{names.shared_gate}.weight"
            piece = Piece(source=gate, shape=(1, hidden), dim=0, start=0, stop=1)
            self.shared_gate = where.parameter((1, hidden), [piece])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, routes = self.exchange.dispatch(x, self.router(x), self.site)
        out = self.exchange.combine(self.experts(rows, routes), routes, self.site)
        if self.shared is None:
            return out
        shared: torch.Tensor = self.shared(x)
        if self.shared_gate is not None:
            shared = shared * F.linear(x, self.shared_gate).sigmoid()
        return out + shared
