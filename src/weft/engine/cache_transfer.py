"""The cache of a prompt goes from prefill ranks to the decode ranks that need it.

Both ends walk the layers and links (vocabulary/cache_transfer.py) in the same order. The group is
the prefill ranks followed by the decode ranks, one replica of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from weft.comm.communicator import Communicator
from weft.layers.attention import Cache, CachePart
from weft.vocabulary.attention_kinds import AttentionKind
from weft.vocabulary.cache_transfer import Link, links
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class MovedLayer:
    """A layer's kind of cache, and the stages that hold it at both ends."""

    kind: AttentionKind
    prefill_stage: int
    decode_stage: int


class CacheTransfer:
    """One rank's side of it."""

    def __init__(self, prefill: Layout, decode: Layout, group: Communicator) -> None:
        self._prefill, self._decode, self._group = prefill, decode, group

    def send(
        self, layers: Sequence[MovedLayer], caches: Sequence[Cache], slots: torch.Tensor, row: int
    ) -> None:
        """Positions in ``slots`` of the request in ``row``, from a prefill rank's ``layers``."""
        for layer, cache in zip(layers, caches, strict=True):
            for link, src, dst in self._links(layer):
                if src == self._group.rank:
                    for part in cache.part(_part(link, layer, self._prefill, slots, row)):
                        self._group.send(part, dst, "cache")

    def receive(
        self, layers: Sequence[MovedLayer], caches: Sequence[Cache], slots: torch.Tensor, row: int
    ) -> None:
        """The same, into the caches of a decode rank."""
        for layer, cache in zip(layers, caches, strict=True):
            for link, src, dst in self._links(layer):
                if dst == self._group.rank:
                    place = _part(link, layer, self._decode, slots, row)
                    parts = [part.clone() for part in cache.part(place)]
                    for part in parts:
                        self._group.recv(part, src, "cache")
                    cache.put(place, parts)

    def _links(self, layer: MovedLayer) -> Iterator[tuple[Link, int, int]]:
        """The layer's messages and their ends in the group."""
        num_prefill = self._prefill.tp * self._prefill.pp
        for link in links(layer.kind, self._prefill.tp, self._decode.tp):
            src = self._prefill.rank_of(stage=layer.prefill_stage, tp_rank=link.src)
            dst = self._decode.rank_of(stage=layer.decode_stage, tp_rank=link.dst)
            yield link, src, num_prefill + dst


def moved_layers(spec: ModelSpec, prefill: Layout, decode: Layout) -> list[MovedLayer]:
    """Every layer of the model."""
    first, second = (
        [stage for stage, own in enumerate(layout.layers_of_stages(spec.num_layers)) for _ in own]
        for layout in (prefill, decode)
    )
    return [
        MovedLayer(
            kind=spec.attention(layer), prefill_stage=first[layer], decode_stage=second[layer]
        )
        for layer in range(spec.num_layers)
    ]


def _part(link: Link, layer: MovedLayer, end: Layout, slots: torch.Tensor, row: int) -> CachePart:
    """The message as a part of what a rank of that end holds."""
    count = link.num_parts // layer.kind.cache_parts(end.tp)
    return CachePart(slots=slots, row=row, index=link.part % count, count=count)
