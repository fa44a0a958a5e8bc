"""What a layer's parts ask of one rank: products, cache, pairs, whatever the family."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from weft.vocabulary.attention_kinds import AttentionKind, GroupedQuery
from weft.vocabulary.feed_forward_kinds import Dense, FeedForwardKind
from weft.vocabulary.model_spec import ModelSpec

Product = tuple[float, float]
"""(outputs, inputs) of a matrix product of the step's rows."""


@dataclass(frozen=True, kw_only=True)
class AttentionWork:
    """One rank's part of one layer's attention.

    products: projections. cache_elements: read a position by every decoding sequence.
    decode_operations, prefill_operations: a row and position of context. window: positions that a
    row may look back. state_elements: read and written a sequence whatever its length.
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
    state_elements: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ExpertsWork:
    """Routed experts: ``chosen`` of ``total`` a row, each of ``inner`` elements on one rank.

    held: experts that one rank holds; inner: the rank's slice of each.
    """

    total: int
    chosen: int
    held: float
    inner: float


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
            _feed_forward_work(feed_forward, spec.hidden_size, tp, ep),
        )
        for (attention, feed_forward), count in kinds.items()
    )


def _attention_work(kind: AttentionKind, hidden: int, tp: int) -> AttentionWork:
    if isinstance(kind, GroupedQuery):
        return grouped(
            hidden,
            kind.num_heads,
            kind.num_kv_heads,
            kind.head_dim,
            tp,
            window=kind.window,
            norms=kind.qk_norm,
        )
    return latent(
        hidden,
        kind.num_heads,
        q_rank=kind.q_rank,
        kv_rank=kind.kv_rank,
        nope_dim=kind.nope_dim,
        rope_dim=kind.rope_dim,
        v_dim=kind.v_dim,
        tp=tp,
        window=kind.window,
    )


def _feed_forward_work(kind: FeedForwardKind, hidden: int, tp: int, ep: int) -> FeedForwardWork:
    if isinstance(kind, Dense):
        return dense(hidden, kind.intermediate_size, tp)
    return routed(
        hidden,
        kind.num_experts,
        kind.experts_per_token,
        kind.intermediate_size,
        tp,
        ep,
        shared=kind.shared.intermediate_size if kind.shared else 0,
    )


def dense(hidden: int, inner: int, tp: int) -> FeedForwardWork:
    """gate, up and down projections."""
    width = inner / tp
    return FeedForwardWork(products=((2 * width, hidden), (hidden, width)), width=3 * width)


def routed(
    hidden: int, total: int, chosen: int, inner: int, tp: int, ep: int, shared: int = 0
) -> FeedForwardWork:
    """Router, routed experts (sliced by tp, or whole and spread over ep), shared experts."""
    share = tp // ep if ep > 1 else tp
    own = inner / max(share, 1)
    products: tuple[Product, ...] = ((total, hidden),)
    if shared:
        products += ((2 * shared / tp, hidden), (hidden, shared / tp))
    return FeedForwardWork(
        products=products,
        width=3 * (chosen * inner + shared) / tp,
        experts=ExpertsWork(total=total, chosen=chosen, held=total / ep, inner=own),
    )


def grouped(
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    tp: int,
    *,
    window: int | None = None,
    norms: bool = False,
    gated: bool = False,
) -> AttentionWork:
    """Grouped-query attention; KV heads are copied where tp exceeds them."""
    query = heads * head_dim / tp
    kv = max(kv_heads / tp, 1.0) * head_dim
    return AttentionWork(
        products=((query * (1 + gated) + 2 * kv, hidden), (hidden, query)),
        cache_elements=2 * kv,
        decode_operations=4 * query,
        prefill_operations=4 * query,
        width=2 * (query + kv) * (1 + norms) + 4 * kv,
        kernels=int(norms),
        window=window,
    )


def latent(
    hidden: int,
    heads: int,
    *,
    q_rank: int | None,
    kv_rank: int,
    nope_dim: int,
    rope_dim: int,
    v_dim: int,
    tp: int,
    window: int | None = None,
) -> AttentionWork:
    """Latent attention: absorbed in decode, keys and values of all heads in prefill.

    Down-projections and the cache are on every rank (arXiv 2405.04434, section 2.1).
    """
    own = heads / tp
    return AttentionWork(
        products=(
            ((q_rank or 0) + kv_rank + rope_dim, hidden),
            (own * (nope_dim + rope_dim), q_rank or hidden),
            (own * (nope_dim + v_dim), kv_rank),
            (hidden, own * v_dim),
        ),
        cache_elements=kv_rank + rope_dim,
        decode_operations=2 * own * (2 * kv_rank + rope_dim),
        prefill_operations=2 * own * (nope_dim + rope_dim + v_dim),
        width=2 * ((q_rank or 0) + 2 * kv_rank + rope_dim + own * (nope_dim + rope_dim)),
        kernels=4,
        kind="latent",
        window=window,
    )


def linear(
    hidden: int, key_heads: int, value_heads: int, key_dim: int, value_dim: int, tp: int
) -> AttentionWork:
    """Gated delta net: a state of key_dim x value_dim a value head, no cache (fp32 state)."""
    keys, values = key_heads * key_dim / tp, value_heads * value_dim / tp
    return AttentionWork(
        products=((2 * keys + 2 * values + 2 * value_heads / tp, hidden), (hidden, values)),
        cache_elements=0.0,
        decode_operations=0.0,
        prefill_operations=0.0,
        width=6 * (2 * keys + values),
        kernels=6,
        kind="linear",
        state_elements=2 * 2 * value_heads * key_dim * value_dim / tp,
    )
