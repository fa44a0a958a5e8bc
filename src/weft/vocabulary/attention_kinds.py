"""Attention kinds as data: parameters, cache and what divides over ranks, without torch.

Cache and state belong to the kind: ``cache_elements`` a position, ``state_bytes`` a
sequence. Matrices are stored in ``input_format`` and, the last one, in ``output_format``.
Symbols: h hidden size, H query heads, K key-value heads, D head_dim, t = tp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from weft.vocabulary.rope import Rope
from weft.vocabulary.weight_formats import PLAIN, WeightFormat

QkNorm = Literal["heads", "all_heads", "unweighted"]
"""Norms of queries and keys: of each head before it turns, of all heads together, or of each
head after it has turned, without weights."""


CacheShape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """What all kinds share: their matrices are those that read the rows, and one that writes them.

    output_size: elements of a row that the last matrix reads; window: positions that a row may
    look back; part: which of TensorNames says where the checkpoint keeps it.
    """

    input_format: WeightFormat = PLAIN
    output_format: WeightFormat = PLAIN
    rope: Rope | None = None
    window: int | None = None
    output_name: ClassVar[str] = "o_proj"
    part: ClassVar[str] = "attention"

    def parameters(self, hidden_size: int) -> int:
        """Elements of all matrices, biases and norms."""
        output = hidden_size * self.output_size
        return self.input_elements(hidden_size) + output + self.other_elements(hidden_size)

    def stored_bytes(self, hidden_size: int, element_bytes: int) -> float:
        """The same in bytes; biases and norms have ``element_bytes``."""
        inputs = self.input_elements(hidden_size) * self.input_format.bytes
        output = hidden_size * self.output_size * self.output_format.bytes
        return inputs + output + self.other_elements(hidden_size) * element_bytes

    def cache_elements(self, tp: int) -> int:  # noqa: ARG002
        """Elements of one position's keys and values on one rank."""
        return 0

    def state_bytes(self, tp: int, element_bytes: int) -> int:  # noqa: ARG002
        """Bytes that one sequence holds on one rank whatever its length."""
        return 0

    def cache_parts(self, tp: int) -> int:
        """In how many different parts ``tp`` ranks hold the cache."""
        return tp

    def part_shapes(self, tokens: int, num_parts: int) -> tuple[tuple[CacheShape, str | None], ...]:
        """Shapes and types (None: the model's) of one part of what ``tokens`` positions leave."""
        raise NotImplementedError

    @property
    def has_kernels(self) -> bool:
        """Whether weft's own kernels compute it."""
        return False

    @property
    def reduces_norms(self) -> bool:
        """Whether its norms need sums over all ranks (fp32, two a row)."""
        return False

    @property
    def divided(self) -> tuple[tuple[str, int], ...]:
        """What tensor parallelism divides beside the query heads."""
        return ()

    @property
    def output_size(self) -> int:
        raise NotImplementedError

    def input_elements(self, hidden_size: int) -> int:
        raise NotImplementedError

    def other_elements(self, hidden_size: int) -> int:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Queries of position p times 1 + scale log(1 + floor((p + 1) / floor)) (Llama 4)."""

    scale: float
    floor: float


@dataclass(frozen=True, kw_only=True)
class GroupedQuery(_Attention):
    """H query heads share K key-value heads of D elements; each rank holds H/t and K/t.

    rope: None where nothing turns; chunk: rows see only positions of their own chunk of so
    many; scale: factor of the scores (None: D^-0.5); sinks: a score of each head that takes its
    share and gives nothing; output_gate: the outputs are multiplied by the sigmoid of a
    projection.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    chunk: int | None = None
    scale: float | None = None
    temperature: Temperature | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm | None = None
    sinks: bool = False
    output_gate: bool = False

    @property
    def rotary_size(self) -> int:
        """Elements of a head that turn."""
        return (self.rope and self.rope.rotary_dim) or self.head_dim

    @property
    def has_kernels(self) -> bool:
        """Whether weft's own kernels compute it: whole heads turn, by halves, scores as usual."""
        whole = self.rope is not None and not self.rope.interleaved
        usual = (self.scale, self.chunk, self.temperature) == (None, None, None)
        plain = usual and not self.sinks and self.qk_norm in (None, "heads")
        return whole and plain and self.rotary_size == self.head_dim

    @property
    def reduces_norms(self) -> bool:
        return self.qk_norm == "all_heads"

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("q_proj", "k_proj", "v_proj")

    @property
    def attended_sizes(self) -> tuple[int, int]:
        """Elements of a head's query and of its output where the cache is read."""
        return self.head_dim, self.head_dim

    @property
    def query_size(self) -> int:
        """Rows of the query projection, gates included."""
        return self.num_heads * self.head_dim * (1 + self.output_gate)

    @property
    def output_size(self) -> int:
        return self.num_heads * self.head_dim

    def input_elements(self, hidden_size: int) -> int:
        return hidden_size * (self.query_size + 2 * self.num_kv_heads * self.head_dim)

    def other_elements(self, hidden_size: int) -> int:
        biases = (self.query_size + 2 * self.num_kv_heads * self.head_dim) * self.qkv_bias
        heads = {"heads": 2, "all_heads": self.num_heads + self.num_kv_heads}
        norms = heads.get(self.qk_norm or "", 0) * self.head_dim
        return biases + hidden_size * self.output_bias + norms + self.num_heads * self.sinks

    def cache_elements(self, tp: int) -> int:
        return 2 * max(1, self.num_kv_heads // tp) * self.head_dim

    def cache_parts(self, tp: int) -> int:
        return min(tp, self.num_kv_heads)

    def part_shapes(self, tokens: int, num_parts: int) -> tuple[tuple[CacheShape, None], ...]:
        """Keys and values in one message."""
        return (((2, tokens, self.num_kv_heads // num_parts, self.head_dim), None),)


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
    scale: float
    bias: bool = False
    norm_eps: float = 1e-6

    @property
    def rotary_size(self) -> int:
        return self.rope_dim

    @property
    def input_names(self) -> tuple[str, ...]:
        queries = ("q_proj",) if self.q_rank is None else ("q_a_proj", "q_b_proj")
        return ("kv_a_proj_with_mqa", "kv_b_proj", *queries)

    @property
    def attended_sizes(self) -> tuple[int, int]:
        return self.kv_rank + self.rope_dim, self.kv_rank

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

    def cache_parts(self, tp: int) -> int:  # noqa: ARG002
        return 1

    def part_shapes(
        self,
        tokens: int,
        num_parts: int,  # noqa: ARG002
    ) -> tuple[tuple[CacheShape, None], ...]:
        return (((tokens, self.kv_rank + self.rope_dim), None),)


@dataclass(frozen=True, kw_only=True)
class GatedDelta(_Attention):
    """Gated delta net (Yang et al. 2024, arXiv:2412.06464): linear attention with a state.

    Each of V value heads keeps a matrix [key_dim, value_dim] in fp32, which decays and is
    corrected by every token; queries and keys of a key head serve V / K value heads. Before
    that queries, keys and values pass a causal convolution over ``kernel_size`` tokens, whose
    last inputs are kept too, and ``activation``. by_key_head: the checkpoint stacks its projections by key head.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    kernel_size: int
    activation: str = "silu"
    by_key_head: bool = False
    output_name: ClassVar[str] = "out_proj"
    part: ClassVar[str] = "linear_attention"

    @property
    def rotary_size(self) -> int:
        return 0

    @property
    def divided(self) -> tuple[tuple[str, int], ...]:
        return (("key heads of linear attention", self.num_key_heads),)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The large ones; those of gates and decays stay in the model's type."""
        return ("in_proj_qkvz",) if self.by_key_head else ("in_proj_qkv", "in_proj_z")

    @property
    def mixed_size(self) -> int:
        """Channels of the convolution: queries, keys and values of all heads."""
        return 2 * self.num_key_heads * self.key_dim + self.output_size

    @property
    def output_size(self) -> int:
        return self.num_value_heads * self.value_dim

    def input_elements(self, hidden_size: int) -> int:
        return hidden_size * (self.mixed_size + self.output_size)

    def other_elements(self, hidden_size: int) -> int:
        """Gates and decays, the convolution and the norm."""
        small = 2 * self.num_value_heads * (hidden_size + 1)
        return small + self.mixed_size * self.kernel_size + self.value_dim

    def state_bytes(self, tp: int, element_bytes: int) -> int:
        state = 4 * self.num_value_heads * self.key_dim * self.value_dim
        return (state + self.mixed_size * (self.kernel_size - 1) * element_bytes) // tp

    def part_shapes(
        self,
        tokens: int,  # noqa: ARG002
        num_parts: int,
    ) -> tuple[tuple[CacheShape, str | None], ...]:
        """The convolution's last inputs, and the state."""
        inputs = (self.mixed_size // num_parts, self.kernel_size - 1)
        state = (self.num_value_heads // num_parts, self.key_dim, self.value_dim)
        return (inputs, None), (state, "float32")


AttentionKind = GroupedQuery | Latent | GatedDelta
