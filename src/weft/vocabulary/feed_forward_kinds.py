"""Feed-forward kinds as data: parameters and what divides over ranks, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
class Routing:
    """How a token chooses its experts and weighs them.

    scores: of the router's logits; normalize: the chosen weights add up to 1; scale: factor
    of the weights. groups > 1: only experts of the best ``groups_per_token`` groups are
    chosen. corrected: a bias of each expert counts in the choice but not in the weight, and
    a group is as good as its best two experts (else its best one). fp32: logits in fp32.
    """

    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_per_token: int = 1
    corrected: bool = False
    fp32: bool = False


@dataclass(frozen=True, kw_only=True)
class Experts:
    """``experts_per_token`` of ``num_experts`` gated blocks, and a shared one for all tokens."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    routing: Routing
    shared: Dense | None = None
    activation: str = "silu"

    def parameters(self, hidden_size: int) -> int:
        """Elements of all experts, the shared one and the router (not its corrections)."""
        routed = self.num_experts * hidden_size * (1 + 3 * self.intermediate_size)
        return routed + (self.shared.parameters(hidden_size) if self.shared else 0)


FeedForwardKind = Dense | Experts
