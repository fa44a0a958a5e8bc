"""Feed-forward kinds as data: parameters and what divides over ranks, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weft.vocabulary.weight_formats import PLAIN, WeightFormat


@dataclass(frozen=True, kw_only=True)
class ClampedSwiglu:
    """gate sigmoid(alpha gate) (up + 1), gate at most ``limit`` and up within it (gpt-oss)."""

    alpha: float
    limit: float


Activation = str | ClampedSwiglu
"""Of a gated block: by name activation(gate) up."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """down(activation(gate(x)) * up(x)) of ``intermediate_size`` inner elements."""

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False
    format: WeightFormat = PLAIN

    def parameters(self, hidden_size: int) -> int:
        return 3 * hidden_size * self.intermediate_size + self._biases(hidden_size)

    def stored_bytes(self, hidden_size: int, element_bytes: int) -> float:
        """The same in bytes; biases have ``element_bytes``."""
        weights = 3 * hidden_size * self.intermediate_size * self.format.bytes
        return weights + self._biases(hidden_size) * element_bytes

    def _biases(self, hidden_size: int) -> int:
        return (2 * self.intermediate_size + hidden_size) * self.bias


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a token chooses its experts and weighs them.

    scores: of the router's logits; normalize: the chosen weights add up to 1; scale: factor
    of the weights. groups > 1: only experts of the best ``groups_per_token`` groups are
    chosen. corrected: a bias of each expert counts in the choice but not in the weight, and
    a group is as good as its best two experts (else its best one). fp32: logits in fp32.
    bias: of the router; weighs_inputs: the weights multiply what the experts read.
    """

    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_per_token: int = 1
    corrected: bool = False
    fp32: bool = False
    bias: bool = False
    weighs_inputs: bool = False


@dataclass(frozen=True, kw_only=True)
class Experts:
    """``experts_per_token`` of ``num_experts`` gated blocks, and a shared one for all tokens.

    shared_gate: the shared one's output is multiplied by the sigmoid of a projection.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    routing: Routing
    shared: Dense | None = None
    shared_gate: bool = False
    activation: Activation = "silu"
    bias: bool = False
    format: WeightFormat = PLAIN

    def parameters(self, hidden_size: int) -> int:
        """Elements of all experts, the shared one and the router (not its corrections)."""
        shared = self.shared.parameters(hidden_size) if self.shared else 0
        return self._weights(hidden_size) + self._others(hidden_size) + shared

    def stored_bytes(self, hidden_size: int, element_bytes: int) -> float:
        """The same in bytes; router, gate and biases have ``element_bytes``."""
        weights = self._weights(hidden_size) * self.format.bytes
        shared = self.shared.stored_bytes(hidden_size, element_bytes) if self.shared else 0
        return weights + self._others(hidden_size) * element_bytes + shared

    def _weights(self, hidden_size: int) -> int:
        return 3 * self.num_experts * hidden_size * self.intermediate_size

    def _others(self, hidden_size: int) -> int:
        biases = (2 * self.intermediate_size + hidden_size) * self.bias + self.routing.bias
        return self.num_experts * (hidden_size + biases) + hidden_size * self.shared_gate


FeedForwardKind = Dense | Experts
