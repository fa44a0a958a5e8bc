"""How many blocks the key-value cache gets."""

from __future__ import annotations

import os
from typing import Final

import torch

from weft.comm.groups import ProcessGroups
from weft.engine.config import EngineConfig
from weft.engine.runner import StageRunner
from weft.errors import EnvironmentUnavailable
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_spec import ModelSpec

CPU_TOKENS: Final = 8192
_RESERVE_BYTES: Final = 2 << 30
"""For graphs, the libraries' workspaces and communication buffers."""


def num_cache_blocks(
    runner: StageRunner, groups: ProcessGroups, config: EngineConfig, block_size: int
) -> int:
    """Blocks of the cache, the spare one included: the same number on every rank.

    Raises EnvironmentUnavailable where the weights leave no room in the share.
    """
    if config.cache_tokens is not None or groups.device.type != "cuda":
        tokens = config.cache_tokens or CPU_TOKENS
        return -(-tokens // block_size) + 1
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(groups.device)
    room = int(config.memory_share * total) - (total - free) - _RESERVE_BYTES
    most_rows = config.max_batch_tokens + config.max_batch_requests
    room -= activation_bytes(runner, groups.layout.tp, most_rows)
    room -= runner.state_bytes_per_request * config.max_batch_requests * groups.layout.pp
    blocks = room // max(1, runner.cache_bytes_per_position * block_size)
    fewest: int = min(groups.host_gather(blocks))
    if fewest < 2:
        raise EnvironmentUnavailable(
            f"`memory_share` {config.memory_share}: after the weights of {runner.spec.name} "
            f"{room / 1e9:.1f} GB are left for the key-value cache; use more GPUs or a larger share"
        )
    return fewest


def check_host_memory(spec: ModelSpec, layout: Layout, config: EngineConfig, itemsize: int) -> None:
    """EnvironmentUnavailable where weights and cache of this machine's ranks cannot fit."""
    tokens = (config.cache_tokens or CPU_TOKENS) * layout.ranks_per_node
    per_token = spec.cache_elements(range(spec.num_layers), layout.tp) / layout.pp
    share = layout.ranks_per_node / (layout.tp * layout.pp)
    states = spec.state_bytes(range(spec.num_layers), layout.tp) * config.max_batch_requests
    needed = (spec.num_parameters * share + tokens * per_token) * itemsize
    needed += states * layout.ranks_per_node
    if needed > physical_bytes():
        raise EnvironmentUnavailable(
            f"{spec.name} as {layout.name} needs about {needed / 1e9:,.0f} GB for weights and "
            f"cache on this machine, which has {physical_bytes() / 1e9:,.0f} GB; take a smaller "
            "model, fewer tokens or more machines"
        )


def physical_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def activation_bytes(runner: StageRunner, tp: int, num_rows: int) -> int:
    """Most that a step of ``num_rows`` rows holds at once beside weights and cache."""
    spec = runner.spec
    inner = spec.intermediate_size if not spec.is_moe else 4 * spec.expert_intermediate_size
    widest = 3 * inner // tp + 6 * spec.hidden_size
    return int(num_rows * widest * runner.dtype.itemsize)
