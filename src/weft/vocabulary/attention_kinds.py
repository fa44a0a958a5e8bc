"""Attention kinds as data: parameters, cache and what divides over ranks, without torch.

Cache and state belong to the kind: ``cache_elements`` a position, ``state_elements`` a
sequence. Symbols: h hidden size, H query heads, K key-value heads, D head_dim, t = tp.
"""

from __future__ import annotations

from dataclasses import dataclass

from weft.vocabulary.rope import Rope


@dataclass(frozen=True, kw_only=True)
class GroupedQuery:
    """H query heads share K key-value heads of D elements; each rank holds H/t and K/t.

    rope: None where positions are not encoded; window: positions a token may look back.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False

    def parameters(self, hidden_size: int) -> int:
        """Elements of the q, k, v and output projections (with biases and q/k norms)."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        weights = hidden_size * (2 * q_size + 2 * kv_size)
        biases = (q_size + 2 * kv_size) * self.qkv_bias + hidden_size * self.output_bias
        return weights + biases + 2 * self.head_dim * self.qk_norm

    def cache_elements(self, tp: int) -> int:
        """Elements of one position's keys and values on one rank."""
        return 2 * max(1, self.num_kv_heads // tp) * self.head_dim

    def state_elements(self, tp: int) -> int:  # noqa: ARG002
        """Elements that one sequence holds whatever its length."""
        return 0


AttentionKind = GroupedQuery
