"""Which matrix product for which shape: the rules behind benchmarks/decode_kernels.py.

Measured on an H200; see docs/lab-log.md. Shapes: M rows, N columns, K inner size.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional as F

from weft.layers.fused.elementwise import silu_mul
from weft.layers.fused.float8 import dequantised
from weft.layers.fused.language import dependent_launch
from weft.layers.fused.skinny_linear import MAX_ROWS, LinearWorkspace, Tile, few_rows, one_row


@cache
def tile_for(num_rows: int, n: int, k: int, *, gated: bool, multiprocessors: int) -> Tile | None:
    """The tile of our own kernels, or None where the library's product is faster."""
    if num_rows == 1:
        is_wide = k >= 4096 and n not in range(2048, 4096)
        return Tile(block_n=2, block_k=2048) if is_wide else Tile(block_n=4, block_k=1024)
    if num_rows > MAX_ROWS // 2 or n % 8 or k % 128 or k < 1024:
        return None
    if n >= 20000:
        return Tile(block_n=128, block_k=64, num_stages=4)
    return _one_block_each(n, k, multiprocessors, gated=gated) or _more_blocks(gated=gated)


def _one_block_each(n: int, k: int, multiprocessors: int, *, gated: bool) -> Tile | None:
    """A block a multiprocessor: 64 columns and most of the shared memory for what is under way, where that fits."""
    tiles = -(-n // 64)
    fitting = (s for s in (8, 4, 2, 1) if tiles * s <= multiprocessors and k // s >= 512)
    splits = next(fitting, None)
    if splits is None:
        return None
    return Tile(block_n=64, block_k=128, splits=splits, num_stages=4 if gated else 6)


def _more_blocks(*, gated: bool) -> Tile:
    """Where 64 columns a block make more blocks than multiprocessors."""
    if gated:
        return Tile(block_n=64, block_k=64, num_stages=4)
    return Tile(block_n=128, block_k=128, splits=2)


@cache
def scaled_tile_for(
    num_rows: int, n: int, k: int, groups: int, *, gated: bool, multiprocessors: int
) -> Tile | None:
    """The same for 8-bit floats with ``groups`` scales a row."""
    group = k // groups
    if groups > 1 and (group < 32 or group & (group - 1)):
        return None
    if num_rows == 1:
        return _scaled_tile_of_one_row(n, k, gated=gated, in_groups=groups > 1)
    if num_rows > MAX_ROWS or n % 16 or k % 128:
        return None
    # Two warps: four would read 8-bit weights out of shared memory by single bytes.
    block_n, block_k = 32 if gated else 64, 128 if groups == 1 else min(128, group)
    tiles = -(-n // block_n)
    fitting = (s for s in (8, 4, 2, 1) if tiles * s <= 6 * multiprocessors and k // s >= 256)
    return Tile(
        block_n=block_n, block_k=block_k, splits=next(fitting, 1), num_warps=2, num_stages=3
    )


def _scaled_tile_of_one_row(n: int, k: int, *, gated: bool, in_groups: bool) -> Tile:
    if k > 4096:
        return Tile(block_n=4, block_k=2048)
    if in_groups or n * k * (2 if gated else 1) <= 1 << 24:
        return Tile(block_n=8, block_k=2048)
    return Tile(block_n=4, block_k=4096)


@cache
def workspace(device: torch.device) -> LinearWorkspace:
    """The one workspace of a device; calls on it are ordered by their stream."""
    return LinearWorkspace(device)


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows x [M, K] with weight [N, K] (8-bit floats: scales [G, N]) -> [M, N]."""
    tile = _tile(x, weight, len(weight), scales, gated=False)
    if tile is None:
        return F.linear(x, _whole(x, weight, scales), bias)
    if len(x) == 1:
        return one_row(x, weight, bias, scales=scales, tile=tile)
    return few_rows(x, weight, bias, workspace=workspace(x.device), scales=scales, tile=tile)


def gated_product(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """Rows x [M, K] with weight [2 N, K] -> silu(x w_first) * (x w_second), [M, N]."""
    tile = _tile(x, weight, len(weight) // 2, scales, gated=True)
    if tile is None:
        return silu_mul(F.linear(x, _whole(x, weight, scales)))
    if len(x) == 1:
        return one_row(x, weight, scales=scales, gated=True, tile=tile)
    return few_rows(x, weight, workspace=workspace(x.device), scales=scales, gated=True, tile=tile)


def _whole(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
    return weight if scales is None else dequantised(weight, scales, x.dtype)


def _tile(
    x: torch.Tensor, weight: torch.Tensor, n: int, scales: torch.Tensor | None, *, gated: bool
) -> Tile | None:
    """The rules hold where they were measured: Hopper and later, with its shared memory."""
    if not weight.is_contiguous() or not dependent_launch(x.device.index):
        return None
    count, k = multiprocessors(x.device), weight.shape[1]
    if scales is None:
        return tile_for(len(x), n, k, gated=gated, multiprocessors=count)
    return scaled_tile_for(len(x), n, k, len(scales), gated=gated, multiprocessors=count)


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count
