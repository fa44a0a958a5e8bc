"""What a layer's parts ask of one rank: products, cache, pairs, whatever the family."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from weft.vocabulary.attention_kinds import AttentionKind, GatedDelta, GroupedQuery, Latent
from weft.vocabulary.feed_forward_kinds import Dense, Experts, FeedForwardKind
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.weight_formats import FORMATS, PLAIN, WeightFormat

Product = tuple[float, float, WeightFormat]
"""(outputs, inputs, format) of a matrix product of the step's rows."""


@dataclass(frozen=True, kw_only=True)
class AttentionWork:
    """One rank's part of one layer's attention.

    products: projections. cache_elements: read a position by every decoding sequence.
    decode_operations, prefill_operations: a row and position of context. window: positions that a
    row may look back. state_bytes: read and written a sequence whatever its length.
    width: elements a row that elementwise kernels read and write; kernels: how many more those are.
    kind: which kernel's curves time it (weft.prediction.kernels).
    """

    products: tuple[Product, ...]
    cache_elements: float
    decode_operations: float
    prefill_operations: float
    width: float
    kernels: int = 0
    kind: str = "attention"
    window: int | None = None
    state_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ExpertsWork:
    """Routed experts: ``chosen`` of ``total`` a row, each of ``inner`` elements on one rank.

    held: experts that one rank holds; inner: the rank's slice of each.
    """

    total: int
    chosen: int
    held: float
    inner: float
    format: WeightFormat


@dataclass(frozen=True, kw_only=True)
class FeedForwardWork:
    """One rank's part of one feed-forward block: plain products, and routed experts or none."""

    products: tuple[Product, ...]
    width: float
    experts: ExpertsWork | None = None


Layers = tuple[tuple[float, AttentionWork, FeedForwardWork], ...]
"""(how many layers, attention, feed-forward) of each kind of layer."""


@lru_cache(maxsize=1024)
def layers_of(spec: ModelSpec, tp: int, ep: int) -> Layers:
    """The kinds of layers of a model on one rank of ``tp``, experts spread over ``ep``."""
    kinds = Counter(
        (spec.attention(layer), spec.feed_forward(layer)) for layer in range(spec.num_layers)
    )
    return tuple(
        (
            count,
            _attention_work(attention, spec.hidden_size, tp),
            _feed_forward_work(feed_forward, spec, tp, ep),
        )
        for (attention, feed_forward), count in kinds.items()
    )


def _attention_work(kind: AttentionKind, hidden: int, tp: int) -> AttentionWork:
    if isinstance(kind, GroupedQuery):
        return _grouped(kind, hidden, tp)
    if isinstance(kind, Latent):
        return _latent(kind, hidden, tp)
    return _delta(kind, hidden, tp)


def _feed_forward_work(kind: FeedForwardKind, spec: ModelSpec, tp: int, ep: int) -> FeedForwardWork:
    if isinstance(kind, Dense):
        return FeedForwardWork(
            products=_gated(kind, spec.hidden_size, tp), width=3 * kind.intermediate_size / tp
        )
    return _routed(kind, spec, tp, ep)


def _gated(kind: Dense, hidden: int, tp: int) -> tuple[Product, ...]:
    """gate, up and down projections."""
    width = kind.intermediate_size / tp
    return (2 * width, hidden, kind.format), (hidden, width, kind.format)


def _routed(kind: Experts, spec: ModelSpec, tp: int, ep: int) -> FeedForwardWork:
    """Router, routed experts (sliced by tp, or whole and spread over ep), shared experts."""
    share = tp // ep if ep > 1 else tp
    products: tuple[Product, ...] = ((kind.num_experts, spec.hidden_size, FORMATS[spec.dtype]),)
    inner = kind.experts_per_token * kind.intermediate_size
    if kind.shared is not None:
        products += _gated(kind.shared, spec.hidden_size, tp)
        inner += kind.shared.intermediate_size
    return FeedForwardWork(
        products=products,
        width=3 * inner / tp,
        experts=ExpertsWork(
            total=kind.num_experts,
            chosen=kind.experts_per_token,
            held=kind.num_experts / ep,
            inner=kind.intermediate_size / max(share, 1),
            format=kind.format,
        ),
    )


def _grouped(kind: GroupedQuery, hidden: int, tp: int) -> AttentionWork:
    """Grouped-query attention; KV heads are copied where tp exceeds them."""
    query = kind.num_heads * kind.head_dim / tp
    kv, norms = max(kind.num_kv_heads / tp, 1.0) * kind.head_dim, int(kind.qk_norm is not None)
    return AttentionWork(
        products=(
            (kind.query_size / tp + 2 * kv, hidden, kind.input_format),
            (hidden, query, kind.output_format),
        ),
        cache_elements=2 * kv,
        decode_operations=4 * query,
        prefill_operations=4 * query,
        width=2 * (query + kv) * (1 + norms + kind.output_gate) + 4 * kv,
        kernels=norms + kind.output_gate,
        window=kind.window or kind.chunk,
    )


def _latent(kind: Latent, hidden: int, tp: int) -> AttentionWork:
    """Latent attention: absorbed in decode, keys and values of all heads in prefill.

    Down-projections and the cache are on every rank (arXiv 2405.04434, section 2.1).
    """
    own, down = kind.num_heads / tp, (kind.q_rank or 0) + kind.kv_rank + kind.rope_dim
    query, form = kind.nope_dim + kind.rope_dim, kind.input_format
    return AttentionWork(
        products=(
            (down, hidden, form),
            (own * query, kind.q_rank or hidden, form),
            (own * (kind.nope_dim + kind.v_dim), kind.kv_rank, form),
            (hidden, own * kind.v_dim, kind.output_format),
        ),
        cache_elements=kind.kv_rank + kind.rope_dim,
        decode_operations=2 * own * (2 * kind.kv_rank + kind.rope_dim),
        prefill_operations=2 * own * (query + kind.v_dim),
        width=2 * (down + kind.kv_rank + own * query),
        kernels=4,
        kind="latent",
        window=kind.window,
    )


def _delta(kind: GatedDelta, hidden: int, tp: int) -> AttentionWork:
    """Gated delta net: a state of key_dim x value_dim a value head, no cache (fp32 state)."""
    mixed, values, gates = (
        size / tp for size in (kind.mixed_size, kind.output_size, 2 * kind.num_value_heads)
    )
    return AttentionWork(
        products=(
            (mixed + values, hidden, kind.input_format),
            (gates, hidden, PLAIN),
            (hidden, values, kind.output_format),
        ),
        cache_elements=0.0,
        decode_operations=0.0,
        prefill_operations=0.0,
        width=6 * mixed,
        kernels=6,
        kind="linear",
        state_bytes=kind.state_bytes(tp, 2),
    )
