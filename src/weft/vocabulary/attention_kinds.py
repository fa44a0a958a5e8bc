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

    window: positions a token may look back; scale: factor of the scores (None: D^-0.5).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope
    window: int | None = None
    scale: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False

    @property
    def rotary_size(self) -> int:
        """Elements of a head that turn."""
        return self.rope.rotary_dim or self.head_dim

    @property
    def has_kernels(self) -> bool:
        """Whether weft's own kernels compute it: whole heads turn, by halves, scores as usual."""
        whole = self.rotary_size == self.head_dim and not self.rope.interleaved
        return whole and self.scale is None

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


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Keys and values of all heads come from one latent vector of ``kv_rank`` elements a token
    and one rotary key of ``rope_dim``; both are what is cached, on every rank. Queries go
    through ``q_rank`` elements, or straight where it is None. Heads are split over ranks.
    """

    num_heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    rope: Rope
    scale: float
    bias: bool = False
    norm_eps: float = 1e-6
    window: int | None = None

    @property
    def rotary_size(self) -> int:
        return self.rope_dim

    @property
    def has_kernels(self) -> bool:
        return False

    def parameters(self, hidden_size: int) -> int:
        """Elements of down- and up-projections, their norms, the output and the biases."""
        queries = self.num_heads * (self.nope_dim + self.rope_dim)
        up = self.kv_rank * self.num_heads * (self.nope_dim + self.v_dim)
        total = hidden_size * (self.kv_rank + self.rope_dim) + self.kv_rank + up
        total += hidden_size * self.num_heads * self.v_dim
        if self.q_rank is None:
            total += hidden_size * queries
        else:
            total += self.q_rank * (hidden_size + 1 + queries)
        biases = (self.q_rank or 0) + self.kv_rank + self.rope_dim + hidden_size
        return total + biases * self.bias

    def cache_elements(self, tp: int) -> int:  # noqa: ARG002
        """The latent and the rotary key of one position, the same on every rank."""
        return self.kv_rank + self.rope_dim

    def state_elements(self, tp: int) -> int:  # noqa: ARG002
        return 0


AttentionKind = GroupedQuery | Latent
