"""Attention kinds as data: parameters, cache and what divides over ranks, without torch.

Cache and state belong to the kind: ``cache_elements`` a position, ``state_bytes`` a
sequence. Matrices are stored in ``input_format`` and, the last one, in ``output_format``.
Symbols: h hidden size, H query heads, K key-value heads, D head_dim, t = tp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from weft.vocabulary.rope import Rope
from weft.vocabulary.weight_formats import PLAIN, WeightFormat


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """What all kinds share: their matrices are those that read the rows, and one that writes them.

    output_size: elements of a row that the last matrix reads.
    """

    input_format: WeightFormat = PLAIN
    output_format: WeightFormat = PLAIN
    output_name: ClassVar[str] = "o_proj"

    def parameters(self, hidden_size: int) -> int:
        """Elements of all matrices, biases and norms."""
        output = hidden_size * self.output_size
        return self.input_elements(hidden_size) + output + self.other_elements(hidden_size)

    def stored_bytes(self, hidden_size: int, element_bytes: int) -> float:
        """The same in bytes; biases and norms have ``element_bytes``."""
        inputs = self.input_elements(hidden_size) * self.input_format.bytes
        output = hidden_size * self.output_size * self.output_format.bytes
        return inputs + output + self.other_elements(hidden_size) * element_bytes

    def state_bytes(self, tp: int, element_bytes: int) -> int:  # noqa: ARG002
        """Bytes that one sequence holds on one rank whatever its length."""
        return 0

    @property
    def output_size(self) -> int:
        raise NotImplementedError

    def input_elements(self, hidden_size: int) -> int:
        raise NotImplementedError

    def other_elements(self, hidden_size: int) -> int:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GroupedQuery(_Attention):
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

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("q_proj", "k_proj", "v_proj")

    @property
    def output_size(self) -> int:
        return self.num_heads * self.head_dim

    def input_elements(self, hidden_size: int) -> int:
        return hidden_size * (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def other_elements(self, hidden_size: int) -> int:
        biases = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim * self.qkv_bias
        return biases + hidden_size * self.output_bias + 2 * self.head_dim * self.qk_norm

    def cache_elements(self, tp: int) -> int:
        """Elements of one position's keys and values on one rank."""
        return 2 * max(1, self.num_kv_heads // tp) * self.head_dim


@dataclass(frozen=True, kw_only=True)
class Latent(_Attention):
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

    @property
    def input_names(self) -> tuple[str, ...]:
        queries = ("q_proj",) if self.q_rank is None else ("q_a_proj", "q_b_proj")
        return ("kv_a_proj_with_mqa", "kv_b_proj", *queries)

    @property
    def output_size(self) -> int:
        return self.num_heads * self.v_dim

    def input_elements(self, hidden_size: int) -> int:
        """Down- and up-projections."""
        queries = self.num_heads * (self.nope_dim + self.rope_dim)
        if self.q_rank is None:
            queries *= hidden_size
        else:
            queries = self.q_rank * (hidden_size + queries)
        up = self.kv_rank * self.num_heads * (self.nope_dim + self.v_dim)
        return hidden_size * (self.kv_rank + self.rope_dim) + up + queries

    def other_elements(self, hidden_size: int) -> int:
        """Norms of what goes down, and biases."""
        down = (self.q_rank or 0) + self.kv_rank
        return down + (down + self.rope_dim + hidden_size) * self.bias

    def cache_elements(self, tp: int) -> int:  # noqa: ARG002
        """The latent and the rotary key of one position, the same on every rank."""
        return self.kv_rank + self.rope_dim


AttentionKind = GroupedQuery | Latent
