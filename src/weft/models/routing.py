"""Routers: which experts a token takes, and how much of each.

Shapes: R token rows, h hidden size, E experts, G groups of experts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from weft.layers import fused
from weft.layers.linear import Placement
from weft.layers.matrix import linear
from weft.layers.shards import Piece
from weft.vocabulary.feed_forward_kinds import Experts
from weft.vocabulary.routes import Routes
from weft.vocabulary.tensor_names import TensorNames


class Router(nn.Module):
    """Token rows [R, h] -> the routes of each to k of E experts."""

    def __init__(
        self, kind: Experts, hidden_size: int, prefix: str, names: TensorNames, where: Placement
    ) -> None:
        super().__init__()
        router = f"{prefix}.{names.router}"
        self.rule, self.experts_per_token = kind.routing, kind.experts_per_token
        self.weight = where.parameter(
            (kind.num_experts, hidden_size),
            [_whole(f"{router}.weight", (kind.num_experts, hidden_size))],
        )
        self.bias = None
        if self.rule.bias:
            bias = _whole(f"{router}.bias", (kind.num_experts,))
            self.bias = where.parameter((kind.num_experts,), [bias])
        self.correction = None
        if self.rule.corrected:
            name = f"{prefix}.{names.correction}"
            self.correction = replace(where, dtype=torch.float32).parameter(
                (kind.num_experts,), [_whole(name, (kind.num_experts,))]
            )

    def forward(self, x: torch.Tensor) -> Routes:
        logits = self._logits(x)
        if fused.installed() and logits.is_cuda:
            from weft.layers.fused import routing

            if routing.takes(logits, self.rule):
                return routing.choose(logits, self.correction, self.rule, self.experts_per_token)
        scores = self._scores(logits)
        chosen = self._merit(scores).topk(self.experts_per_token, dim=-1).indices
        weights = scores.gather(1, chosen)
        if self.rule.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routes(ids=chosen, weights=weights * self.rule.scale, nobody=scores.shape[1])

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        if self.rule.fp32:
            return F.linear(x.float(), self.weight.float())
        return linear(x, self.weight, self.bias)

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        if self.rule.scores == "sigmoid":
            return logits.float().sigmoid()
        return logits.softmax(dim=-1, dtype=torch.float32)

    def _merit(self, scores: torch.Tensor) -> torch.Tensor:
        """What the choice goes by: corrected scores, minus infinity outside the best groups."""
        merit = scores if self.correction is None else scores + self.correction
        if self.rule.groups == 1:
            return merit
        by_group = merit.unflatten(1, (self.rule.groups, -1))
        best = 1 if self.correction is None else 2
        worth = by_group.topk(best, dim=-1).values.sum(dim=-1)
        kept = worth.topk(self.rule.groups_per_token, dim=-1).indices
        outside = torch.ones_like(worth).scatter(1, kept, 0.0).bool()
        allowed: torch.Tensor = by_group.masked_fill(outside[..., None], float("-inf"))
        return allowed.flatten(1)


def _whole(name: str, shape: tuple[int, ...]) -> Piece:
    return Piece(source=name, shape=shape, dim=0, start=0, stop=shape[0])
