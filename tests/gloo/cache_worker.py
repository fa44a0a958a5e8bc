"""One rank of tests/gloo/test_cache_transfer.py: caches of random values go from layout to layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from weft.comm.communicator import Communicator
from weft.comm.groups import open_groups
from weft.engine.cache_transfer import CacheTransfer, moved_layers
from weft.launch.environment import current_rank
from weft.launch.worker import worker
from weft.layers.attention import Cache, LatentCache, LayerCache, RecurrentCache
from weft.vocabulary.attention_kinds import AttentionKind, GroupedQuery, Latent
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec

SLOTS, ROWS, LIKE = 23, 3, torch.empty(0)


def heads_of(rank: int, tp: int, num_heads: int) -> slice:
    """The heads that a rank of ``tp`` holds: its share, or one that others hold too."""
    first = rank * num_heads // tp
    return slice(first, first + max(num_heads // tp, 1))


def whole(kind: AttentionKind, seed: int, length: int) -> list[torch.Tensor]:
    """What one request leaves in a layer, of all heads; position by position (states: at once)."""
    random = torch.Generator().manual_seed(seed)
    if isinstance(kind, GroupedQuery):
        shapes = [(length, kind.num_kv_heads, kind.head_dim)] * 2
    elif isinstance(kind, Latent):
        shapes = [(length, 1, kind.kv_rank + kind.rope_dim)]
    else:
        heads = kind.num_value_heads, kind.key_dim, kind.value_dim
        shapes = [(kind.mixed_size, kind.kernel_size - 1), heads]
    return [torch.randn(shape, generator=random) for shape in shapes]


def empty(kind: AttentionKind, tp: int, seed: int) -> Cache:
    """A rank's cache with other requests' values in it."""
    cache: Cache
    if isinstance(kind, GroupedQuery):
        cache = LayerCache(SLOTS, max(kind.num_kv_heads // tp, 1), kind.head_dim, LIKE)
    elif isinstance(kind, Latent):
        cache = LatentCache(SLOTS, kind.kv_rank + kind.rope_dim, LIKE)
    else:
        state = ROWS, kind.num_value_heads // tp, kind.key_dim, kind.value_dim
        cache = RecurrentCache((ROWS, kind.mixed_size // tp, kind.kernel_size - 1), state, LIKE)
    random = torch.Generator().manual_seed(seed)
    for tensor in tensors(cache):
        tensor.copy_(torch.randn(tensor.shape, generator=random))
    return cache


def tensors(cache: Cache) -> list[torch.Tensor]:
    if isinstance(cache, LayerCache):
        return [cache.keys, cache.values]
    return [cache.latents] if isinstance(cache, LatentCache) else [cache.inputs, cache.state]


def fill(
    cache: Cache, kind: AttentionKind, left: list[torch.Tensor], tp: int, rank: int, at: object
) -> None:
    """The rank's share of what a request leaves, at ``at`` (its slots, or its row)."""
    for held, values in zip(tensors(cache), left, strict=True):
        mine = values
        if isinstance(kind, GroupedQuery):
            mine = values[:, heads_of(rank, tp, kind.num_kv_heads)]
        elif not isinstance(kind, Latent):
            mine = values[heads_of(rank, tp, len(values))]
        held[at] = mine  # type: ignore[index]


def check(spec, prefill: Layout, decode: Layout, length: int, world: Communicator) -> None:
    """Send or receive; a rank that decodes then holds just what one that held all would give it."""
    is_prefill = world.rank < prefill.world_size
    layout = prefill if is_prefill else decode
    rank = world.rank - (0 if is_prefill else prefill.world_size)
    if rank >= layout.world_size:
        return
    stage = layout.layers_of_stages(spec.num_layers)[layout.stage_of(rank)]
    kinds = [spec.attention(layer) for layer in stage]
    layers = [moved_layers(spec, prefill, decode)[layer] for layer in stage]
    mixed = torch.Generator().manual_seed(7 + is_prefill)
    slots, row = torch.randperm(SLOTS, generator=mixed)[:length], 1 + is_prefill
    tp_rank = layout.tp_rank_of(rank)

    def caches(*, filled: bool) -> list[Cache]:
        made = [empty(kind, layout.tp, 100 + rank) for kind in kinds]
        for layer, kind, cache in zip(stage, kinds, made, strict=True):
            if filled:
                at = slots if isinstance(kind, GroupedQuery | Latent) else row
                fill(cache, kind, whole(kind, layer, length), layout.tp, tp_rank, at)
        return made

    here, transfer = caches(filled=is_prefill), CacheTransfer(prefill, decode, world)
    (transfer.send if is_prefill else transfer.receive)(layers, here, slots, row)
    for got, want in zip(here, caches(filled=True), strict=True):
        for one, other in zip(tensors(got), tensors(want), strict=True):
            assert torch.equal(one, other), (spec.name, prefill.name, decode.name, rank)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    with open_groups(Layout(dp=job["ranks"]), rank=current_rank().rank, timeout_s=30) as groups:
        for model, prefill, decode in job["cases"]:
            layouts = Layout.parse(prefill), Layout.parse(decode)
            check(load_spec(model), *layouts, job["length"], groups.world)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with worker():
        main()
