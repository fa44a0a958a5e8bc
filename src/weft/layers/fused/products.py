"""Which matrix product for which shape: the rules behind benchmarks/decode_kernels.py.

Measured on an H200; see docs/lab-log.md. Shapes: M rows, N columns, K inner size.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn import functional as F

from weft.layers.fused.elementwise import silu_mul
from weft.layers.fused.skinny_linear import MAX_ROWS, LinearWorkspace, Tile, few_rows, one_row


@cache
def tile_for(num_rows: int, n: int, k: int, *, gated: bool) -> Tile | None:
    """The tile of our own kernels, or None where the library's product is faster."""
    if num_rows == 1:
        is_wide = k >= 4096 and n not in range(2048, 4096)
        return Tile(block_n=2, block_k=2048) if is_wide else Tile(block_n=4, block_k=1024)
    if num_rows > MAX_ROWS // 2 or n % 8 or k % 128 or k < 1024:
        return None
    if gated:
        is_large = n * k >= 7168 * 4096
        return _split(64, 128, 1) if is_large else _split(64, 64, 2, stages=4)
    if n >= 20000:
        return _split(128, 64, 1, stages=4)
    return _split(64, 128, 2, stages=4) if k < 2048 else _of_block(n)


def _of_block(n: int) -> Tile | None:
    """For the matrices of a layer, by their number of columns."""
    if n < 3584:
        return _split(32, 256, 8 if n <= 1536 else 4)
    if n < 4608:
        return _split(64, 256, 2)
    return _split(128, 128, 2) if n >= 7168 else None


def _split(block_n: int, block_k: int, splits: int, stages: int = 3) -> Tile:
    return Tile(block_n=block_n, block_k=block_k, splits=splits, num_stages=stages)


@cache
def workspace(device: torch.device) -> LinearWorkspace:
    """The one workspace of a device; calls on it are ordered by their stream."""
    return LinearWorkspace(device)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Rows x [M, K] with weight [N, K] -> [M, N]."""
    tile = tile_for(len(x), *weight.shape, gated=False) if weight.is_contiguous() else None
    if tile is None:
        return F.linear(x, weight, bias)
    if len(x) == 1:
        return one_row(x, weight, bias, tile=tile)
    return few_rows(x, weight, bias, workspace=workspace(x.device), tile=tile)


def gated_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows x [M, K] with weight [2 N, K] -> silu(x w_first) * (x w_second), [M, N]."""
    tile = tile_for(len(x), weight.shape[0] // 2, weight.shape[1], gated=True)
    if tile is None:
        return silu_mul(F.linear(x, weight))
    if len(x) == 1:
        return one_row(x, weight, gated=True, tile=tile)
    return few_rows(x, weight, workspace=workspace(x.device), gated=True, tile=tile)
