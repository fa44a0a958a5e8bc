"""Feed-forward kinds as data: parameters and what divides over ranks, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Dense:
    """down(activation(gate(x)) * up(x)) of ``intermediate_size`` inner elements."""

    intermediate_size: int
    activation: str = "silu"
    bias: bool = False

    def parameters(self, hidden_size: int) -> int:
        weights = 3 * hidden_size * self.intermediate_size
        return weights + (2 * self.intermediate_size + hidden_size) * self.bias


@dataclass(frozen=True, kw_only=True)
class Experts:
    """``experts_per_token`` of ``num_experts`` gated blocks of ``intermediate_size`` elements."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    activation: str = "silu"
    normalize: bool = True

    def parameters(self, hidden_size: int) -> int:
        """Elements of all experts and the router."""
        return self.num_experts * hidden_size * (1 + 3 * self.intermediate_size)


FeedForwardKind = Dense | Experts
