"""Which part of a prompt's cache goes from which prefill rank to which decode rank.

As engines' connectors do (vLLM's NIXL): each decode rank fetches, layer by layer, the heads that
it keeps, from one prefill rank that has them. What several ranks hold alike (latents, key-value
heads that are fewer than the ranks) comes from one of them, each decode rank's from the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from weft.errors import LayoutError
from weft.vocabulary.attention_kinds import AttentionKind
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Link:
    """Part ``part`` of ``num_parts`` goes from tensor-parallel rank ``src`` to rank ``dst``."""

    src: int
    dst: int
    part: int
    num_parts: int


def links(kind: AttentionKind, tp_from: int, tp_to: int) -> Iterator[Link]:
    """Every message of one layer's cache of one sequence, by receiving rank."""
    held, kept = kind.cache_parts(tp_from), kind.cache_parts(tp_to)
    num_parts, copies = max(held, kept), tp_from // held
    for dst in range(tp_to):
        first = dst * kept // tp_to * (num_parts // kept)
        for part in range(first, first + num_parts // kept):
            src = part * held // num_parts * copies + dst % copies
            yield Link(src=src, dst=dst, part=part, num_parts=num_parts)


def check_prefill(spec: ModelSpec, layout: Layout, prefill: Layout) -> None:
    """LayoutError where prefill ranks of that layout cannot hand their cache over."""
    for one, where in ((layout, ""), (prefill, " of `prefill_layout`")):
        if one.dcp > 1 or one.dp > 1:
            name = "dcp" if one.dcp > 1 else "dp"
            raise LayoutError(
                f"`{name}` {getattr(one, name)}{where}: with prefill on ranks of its own one "
                f"replica of each is described, whose ranks hold whole positions; set `{name}` 1"
            )
    if spec.has_state and layout.tp != prefill.tp:
        raise LayoutError(
            f"`tp` {prefill.tp} of `prefill_layout`: {spec.name} keeps a state of each sequence, which goes "
            f"from rank to rank as it is; set `tp` {layout.tp} in both"
        )
