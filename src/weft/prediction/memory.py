"""Memory of one rank by part, and how many tokens of cache still fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.prediction.accelerator import Accelerator
from weft.prediction.engine_profile import EngineProfile
from weft.prediction.operators import Shard
from weft.vocabulary.dtypes import element_bytes

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes in 1e9 on the fullest rank; ``limit_gb`` is what the engine may take."""

    weights_gb: float
    cache_gb: float
    activations_gb: float
    buffers_gb: float
    limit_gb: float
    cache_limit_tokens: int

    @property
    def total_gb(self) -> float:
        return self.weights_gb + self.cache_gb + self.activations_gb + self.buffers_gb

    @property
    def fits(self) -> bool:
        return self.total_gb <= self.limit_gb

    @property
    def shortage(self) -> str:
        """Why it does not fit, with numbers."""
        return (
            f"needs {self.total_gb:.1f} GB a GPU (weights {self.weights_gb:.1f}, cache "
            f"{self.cache_gb:.1f}, activations {self.activations_gb:.1f}, buffers "
            f"{self.buffers_gb:.1f}) of {self.limit_gb:.1f} GB"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "weights_gb": self.weights_gb,
            "cache_gb": self.cache_gb,
            "activations_gb": self.activations_gb,
            "buffers_gb": self.buffers_gb,
            "total_gb": self.total_gb,
            "limit_gb": self.limit_gb,
            "fits": self.fits,
            "cache_limit_tokens": self.cache_limit_tokens,
        }


def layer_weight_bytes(shard: Shard) -> float:
    """Weights of the mean layer on one rank; KV projections are copied where tp exceeds KV heads."""
    hidden, total = shard.spec.hidden_size, 0.0
    for count, attention, feed_forward in shard.layers:
        products = (*attention.products, *feed_forward.products)
        total += count * sum(n * k * form.bytes for n, k, form in products)
        if feed_forward.experts is not None:
            work = feed_forward.experts
            total += count * 3 * work.held * hidden * work.inner * work.format.bytes
    return total / shard.spec.num_layers


def weight_bytes_of_stage(shard: Shard, stage: int) -> float:
    """Weights of one rank of ``stage`` with embedding (first) and head (last)."""
    spec, layout = shard.spec, shard.layout
    total = len(layout.layers_of_stages(spec.num_layers)[stage]) * layer_weight_bytes(shard)
    table = spec.embedding_parameters * shard.activation_bytes / layout.tp
    first, last = stage == 0, stage == layout.pp - 1
    if first:
        total += table
    if last and not (first and spec.tie_embeddings):
        total += table
    return total


def memory_of(
    shard: Shard,
    *,
    tokens: float,
    accelerator: Accelerator,
    profile: EngineProfile,
    step_rows: float,
    sequences: float = 1,
) -> Memory:
    """Memory of the fullest rank holding ``tokens`` tokens of ``sequences`` of one replica.

    ``step_rows`` are the token rows of the largest step, which size the activations.
    """
    spec, layout = shard.spec, shard.layout
    stages = layout.layers_of_stages(spec.num_layers)
    activations = _activation_bytes(shard, step_rows) / GB
    buffers = profile.reserved_gb.value
    limit = accelerator.memory_gb.value * profile.memory_fraction
    cache_layer = shard.cache_bytes_per_token / spec.num_layers
    worst: Memory | None = None
    fewest = min(
        _cache_room(shard, stage, len(layers), limit - activations - buffers)
        for stage, layers in enumerate(stages)
    )
    for stage, layers in enumerate(stages):
        state = spec.state_bytes(layers, layout.tp)
        memory = Memory(
            weights_gb=weight_bytes_of_stage(shard, stage) / GB,
            cache_gb=(tokens * len(layers) * cache_layer + sequences * state) / GB,
            activations_gb=activations,
            buffers_gb=buffers,
            limit_gb=limit,
            cache_limit_tokens=fewest,
        )
        if worst is None or memory.total_gb > worst.total_gb:
            worst = memory
    assert worst is not None
    return worst


def _cache_room(shard: Shard, stage: int, num_layers: int, room_gb: float) -> int:
    free = room_gb * GB - weight_bytes_of_stage(shard, stage)
    per_token = num_layers * shard.cache_bytes_per_token / shard.spec.num_layers
    return max(0, int(free / per_token))


def _activation_bytes(shard: Shard, rows: float) -> float:
    """Peak of one layer: residual, block input and output, and the widest intermediate."""
    spec = shard.spec
    width = max(feed_forward.width for _, _, feed_forward in shard.layers)
    return rows * (4 * spec.hidden_size + width) * element_bytes(spec.dtype)
