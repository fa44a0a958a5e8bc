"""ModelSpec: the shape of a decoder, layer by layer (read from config.json in families/)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Final, TypeVar

from weft.errors import ModelConfigError
from weft.vocabulary.attention_kinds import AttentionKind, GroupedQuery
from weft.vocabulary.dtypes import MODEL_DTYPES, element_bytes
from weft.vocabulary.feed_forward_kinds import (
    Activation,
    Dense,
    Experts,
    FeedForwardKind,
    Routing,
)
from weft.vocabulary.rope import Rope
from weft.vocabulary.weight_formats import LayerFormats

_T = TypeVar("_T")
_ROPE: Final = Rope(theta=500000.0)
_ROUTING: Final = Routing()


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Shape of a decoder-only transformer.

    Sizes are counts of elements. ``num_experts`` is 0 for a dense model;
    ``sliding_window`` is the number of positions a token may look back in all layers but
    ``full_layers``, or None; ``local_rope`` is the rope of those layers, where it is another.
    ``attentions`` replace that where it does not say enough: one for all layers or one a layer.
    ``dense_layers`` have no experts in a model that has some; ``shared_expert_size`` is the inner
    size of the expert that sees every token.
    norms_after_blocks: the outputs of attention and feed-forward part have norms of their own;
    norm_weight_offset: added to the norms' weights; logit_cap: c in c tanh(logits / c).
    formats: what the layers' matrices are stored in, where that is not ``dtype``: one for all
    layers or one a layer.
    What one layer is, ``attention(layer)`` and ``feed_forward(layer)`` say.
    """

    name: str
    family: str = "llama"
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_embeddings: bool = False
    dtype: str = "bfloat16"
    max_position: int = 131072
    norm_eps: float = 1e-5
    activation: Activation = "silu"
    rope: Rope = _ROPE
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    full_layers: tuple[int, ...] = ()
    local_rope: Rope | None = None
    score_scale: float | None = None
    attentions: tuple[AttentionKind, ...] = ()
    norms_after_blocks: bool = False
    norm_weight_offset: float = 0.0
    embedding_scale: float = 1.0
    logit_cap: float | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    expert_intermediate_size: int = 0
    routing: Routing = _ROUTING
    expert_bias: bool = False
    shared_expert_size: int = 0
    shared_expert_gate: bool = False
    dense_layers: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    formats: tuple[LayerFormats, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _POSITIVE and not (isinstance(value, int) and value > 0):
                raise ModelConfigError(
                    f"model {self.name}: {field.name} is {value!r}, must be a positive integer"
                )
        if self.num_heads % self.num_kv_heads:
            raise ModelConfigError(
                f"model {self.name}: num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ModelConfigError(
                f"model {self.name}: head_dim {self.head_dim} is odd; rotary embeddings need pairs"
            )
        if self.dtype not in MODEL_DTYPES:
            raise ModelConfigError(
                f"model {self.name}: dtype {self.dtype!r}; choose one of {', '.join(MODEL_DTYPES)}"
            )

    @property
    def is_moe(self) -> bool:
        return self.num_experts > 0

    def has_experts(self, layer: int) -> bool:
        return self.is_moe and layer not in self.dense_layers

    def attention(self, layer: int) -> AttentionKind:
        """The attention of layer ``layer``."""
        return self._all_attentions[layer]

    @cached_property
    def _all_attentions(self) -> tuple[AttentionKind, ...]:
        return tuple(map(self._attention, range(self.num_layers)))

    def _attention(self, layer: int) -> AttentionKind:
        formats = self._formats(layer)
        kind = _of_layer(self.attentions, layer) if self.attentions else self._grouped(layer)
        return replace(kind, input_format=formats.inputs, output_format=formats.output)

    def attentions_of(self, layers: Iterable[int]) -> set[AttentionKind]:
        """The different kinds of attention in ``layers``."""
        return {self.attention(layer) for layer in layers}

    def _grouped(self, layer: int) -> GroupedQuery:
        is_local = self.sliding_window is not None and layer not in self.full_layers
        return GroupedQuery(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            rope=(self.local_rope or self.rope) if is_local else self.rope,
            window=self.sliding_window if is_local else None,
            scale=self.score_scale,
            qkv_bias=self.qkv_bias,
            output_bias=self.output_bias,
            qk_norm="heads" if self.qk_norm else None,
        )

    def feed_forward(self, layer: int) -> FeedForwardKind:
        """The feed-forward part of layer ``layer``."""
        if not self.has_experts(layer):
            return self._dense(self.intermediate_size, layer)
        return Experts(
            num_experts=self.num_experts,
            experts_per_token=self.experts_per_token,
            intermediate_size=self.expert_intermediate_size,
            activation=self.activation,
            bias=self.expert_bias,
            routing=self.routing,
            shared=self._dense(self.shared_expert_size, layer) if self.shared_expert_size else None,
            shared_gate=self.shared_expert_gate,
            format=self._formats(layer).experts,
        )

    def _dense(self, size: int, layer: int) -> Dense:
        return Dense(
            intermediate_size=size,
            activation=self.activation,
            bias=self.mlp_bias,
            format=self._formats(layer).dense,
        )

    def _formats(self, layer: int) -> LayerFormats:
        if not self.formats:
            return LayerFormats.all_in(self.dtype)
        return _of_layer(self.formats, layer)

    def stored_as(self, name: str) -> ModelSpec:
        """The same model with all layers' matrices in one format; WorkloadError lists the names."""
        return replace(self, formats=(LayerFormats.all_in(name, is_moe=self.is_moe),))

    @property
    def format_names(self) -> tuple[str, ...]:
        """The formats of its layers' matrices."""
        names = {form.name for one in self.formats for form in one.of_matrices}
        return tuple(sorted(names)) or (self.dtype,)

    def cache_elements(self, layers: Iterable[int], tp: int) -> int:
        """Elements of one position's cache in ``layers`` on one of ``tp`` ranks."""
        return sum(self.attention(layer).cache_elements(tp) for layer in layers)

    def state_bytes(self, layers: Iterable[int], tp: int) -> int:
        """Bytes that one sequence holds in ``layers`` whatever its length, on one rank."""
        size = element_bytes(self.dtype)
        return sum(self.attention(layer).state_bytes(tp, size) for layer in layers)

    @property
    def attention_has_kernels(self) -> bool:
        """Whether weft's own GPU kernels compute all layers: they know one rope and one kind."""
        kinds = self.attentions_of(range(self.num_layers))
        return all(kind.has_kernels for kind in kinds) and len({k.rope for k in kinds}) == 1

    def cache_copies(self, tp: int) -> int:
        """How many of ``tp`` ranks hold the same heads of every cache, at least (0: no cache)."""
        kinds = self.attentions_of(range(self.num_layers))
        return math.gcd(*(tp // k.cache_parts(tp) for k in kinds if k.cache_elements(tp)))

    @property
    def has_state(self) -> bool:
        """Whether some layer keeps a state of each sequence instead of a cache of positions."""
        return self.state_bytes(range(self.num_layers), 1) > 0

    def norm_reductions(self, layers: Iterable[int]) -> int:
        """Norms in ``layers`` that need sums over all tensor-parallel ranks."""
        return sum(self.attention(layer).reduces_norms for layer in layers)

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Elements of the whole model; tied embeddings are counted once."""
        layers = sum(
            self.attention(layer).parameters(self.hidden_size)
            + self.feed_forward(layer).parameters(self.hidden_size)
            for layer in range(self.num_layers)
        )
        return layers + self._other_parameters

    @property
    def weight_bytes(self) -> float:
        """Bytes of the whole model as its checkpoint stores it."""
        size = element_bytes(self.dtype)
        layers = sum(
            self.attention(layer).stored_bytes(self.hidden_size, size)
            + self.feed_forward(layer).stored_bytes(self.hidden_size, size)
            for layer in range(self.num_layers)
        )
        return layers + self._other_parameters * size

    @property
    def _other_parameters(self) -> int:
        """Embedding, head and norms between blocks."""
        norms = 1 + (4 if self.norms_after_blocks else 2) * self.num_layers
        tables = 1 if self.tie_embeddings else 2
        return norms * self.hidden_size + tables * self.embedding_parameters


def _of_layer(values: tuple[_T, ...], layer: int) -> _T:
    """One for all layers or one a layer."""
    return values[layer if len(values) > 1 else 0]


_POSITIVE: Final = {
    "num_layers",
    "hidden_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position",
}
