"""Matrix products of a few rows, bound by reading the weights: y [M, N] = x [M, K] @ W[N, K]^T.

One row is a sum of products in registers; more rows go through the matrix units, with
the weights as the left factor and, where there are few blocks, K divided among several
of them (the last one adds the parts up, in a fixed order).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

from weft.layers.fused.language import as_type_of, launch_options, prefetch_block


@triton.jit
def products_of(
    w, x, scales_ptr, num_scales, rows, has_row, k,
    K: tl.constexpr, GROUPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Products w * x of elements; where groups of K have scales, their sums times those."""
    wide = w.to(tl.float32) * x[None, :]
    if GROUPS <= 1:
        return wide
    else:  # noqa: RET505 - pruned while compiling
        SIZE: tl.constexpr = K // GROUPS
        COUNT: tl.constexpr = BLOCK_K // SIZE
        group = k // SIZE + tl.arange(0, COUNT)
        at = scales_ptr + group[None, :] * num_scales + rows[:, None]
        scales = tl.load(at, mask=has_row[:, None] & (group < GROUPS)[None, :], other=0.0)
        return tl.sum(tl.reshape(wide, [BLOCK_N, COUNT, SIZE]), axis=2) * scales


@triton.jit
def row_scales(scales_ptr, rows, has_row, GROUPS: tl.constexpr):
    """Factors of whole rows: their scales where they have one each, else 1."""
    if GROUPS == 1:
        return tl.load(scales_ptr + rows, mask=has_row, other=0.0)
    else:  # noqa: RET505 - pruned while compiling
        return tl.full(rows.shape, 1.0, tl.float32)


@triton.jit
def _one_row(
    x_ptr, w_ptr, scales_ptr, bias_ptr, y_ptr, num_columns,
    K: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    has_row = rows < num_columns
    inside, up_rows = has_row[:, None], rows + num_columns
    num_scales = num_columns * 2 if GATED else num_columns
    at = w_ptr + rows.to(tl.int64)[:, None] * K + inner[None, :]
    up_at = at + num_columns.to(tl.int64) * K
    SUMS: tl.constexpr = BLOCK_K if GROUPS <= 1 else BLOCK_K // (K // GROUPS)
    acc = tl.zeros([BLOCK_N, SUMS], tl.float32)
    up_acc = tl.zeros([BLOCK_N, SUMS], tl.float32)
    if DEPENDENT:
        tl_cuda.gdc_launch_dependents()
    # The first weights are asked for before the kernel in front has ended.
    w = tl.load(at, mask=inside & (inner < K)[None, :], other=0.0, eviction_policy="evict_first")
    if GATED:
        up = tl.load(
            up_at, mask=inside & (inner < K)[None, :], other=0.0, eviction_policy="evict_first"
        )
    if DEPENDENT:
        tl_cuda.gdc_wait()
    x = tl.load(x_ptr + inner, mask=inner < K, other=0.0).to(tl.float32)
    acc += products_of(w, x, scales_ptr, num_scales, rows, has_row, 0, K, GROUPS, BLOCK_N, BLOCK_K)
    if GATED:
        up_acc += products_of(
            up, x, scales_ptr, num_scales, up_rows, has_row, 0, K, GROUPS, BLOCK_N, BLOCK_K
        )
    for k in range(BLOCK_K, K, BLOCK_K):
        mask = inside & (k + inner < K)[None, :]
        x = tl.load(x_ptr + k + inner, mask=k + inner < K, other=0.0).to(tl.float32)
        w = tl.load(at + k, mask=mask, other=0.0, eviction_policy="evict_first")
        acc += products_of(
            w, x, scales_ptr, num_scales, rows, has_row, k, K, GROUPS, BLOCK_N, BLOCK_K
        )
        if GATED:
            up = tl.load(up_at + k, mask=mask, other=0.0, eviction_policy="evict_first")
            up_acc += products_of(
                up, x, scales_ptr, num_scales, up_rows, has_row, k, K, GROUPS, BLOCK_N, BLOCK_K
            )
    element = y_ptr.dtype.element_ty
    y = tl.sum(acc, axis=1) * row_scales(scales_ptr, rows, has_row, GROUPS)
    if HAS_BIAS:
        y += tl.load(bias_ptr + rows, mask=has_row, other=0.0).to(tl.float32)
    if GATED:
        gate = y.to(element).to(tl.float32)
        up = tl.sum(up_acc, axis=1) * row_scales(scales_ptr, up_rows, has_row, GROUPS)
        y = (gate * tl.sigmoid(gate)).to(element) * up.to(element)
    tl.store(y_ptr + rows, y.to(element), mask=has_row)


@triton.jit
def _prefetch(
    w_ptr, first_column, num_columns, start,
    K: tl.constexpr, BLOCK_N: tl.constexpr, THREADS: tl.constexpr,
):  # fmt: skip
    """Bring a block's first 256 weights of each column into the L2 cache: they never change."""
    PARTS: tl.constexpr = THREADS // BLOCK_N
    columns = first_column + tl.arange(0, BLOCK_N)[:, None]
    part = tl.arange(0, PARTS)[None, :] * (256 // PARTS)
    at = columns.to(tl.int64) * K + min(start, K - 256) + part
    prefetch_block(w_ptr, tl.where(columns < num_columns, at, 0), 256 // PARTS)


@triton.jit(do_not_specialize=["num_rows"])
def _few_rows(
    x_ptr, w_ptr, scales_ptr, bias_ptr, y_ptr, partial_ptr, counters_ptr, num_rows, num_columns,
    K: tl.constexpr, GATED: tl.constexpr, HAS_BIAS: tl.constexpr, GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    THREADS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, BLOCK_M)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    has_row, has_column = rows < num_rows, columns < num_columns
    up_columns = columns + num_columns
    w_at = w_ptr + columns.to(tl.int64)[:, None] * K + inner[None, :]
    up_at = w_at + num_columns.to(tl.int64) * K
    x_at = x_ptr + rows[None, :] * K + inner[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    up_acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    per_split: tl.constexpr = (K + BLOCK_K * SPLITS - 1) // (BLOCK_K * SPLITS) * BLOCK_K
    start = split * per_split
    if DEPENDENT:
        _prefetch(w_ptr, tile * BLOCK_N, num_columns, start, K, BLOCK_N, THREADS)
        if GATED:
            up_ptr = w_ptr + num_columns.to(tl.int64) * K
            _prefetch(up_ptr, tile * BLOCK_N, num_columns, start, K, BLOCK_N, THREADS)
        tl_cuda.gdc_wait()
    if GROUPS > 1:
        SIZE: tl.constexpr = K // GROUPS
        num_scales = num_columns * 2 if GATED else num_columns
        first = scales_ptr + start // SIZE * num_scales + columns
        has_first = has_column & (start < K)
        scales = tl.load(first, mask=has_first, other=0.0)
        if GATED:
            up_scales = tl.load(first + num_columns, mask=has_first, other=0.0)
    for k in range(start, min(start + per_split, K), BLOCK_K):
        has_inner = k + inner < K
        x = tl.load(x_at + k, mask=has_row[None, :] & has_inner[:, None], other=0.0)
        mask = has_column[:, None] & has_inner[None, :]
        w = tl.load(w_at + k, mask=mask, other=0.0, eviction_policy="evict_first")
        if GROUPS > 1:  # the next scales are asked for while this part is multiplied
            acc += tl.dot(as_type_of(w, x), x) * scales[:, None]
            later = scales_ptr + (k + BLOCK_K) // SIZE * num_scales + columns
            has_later = has_column & (k + BLOCK_K < K)
            scales = tl.load(later, mask=has_later, other=0.0)
        else:
            acc = tl.dot(as_type_of(w, x), x, acc)
        if GATED:
            up = tl.load(up_at + k, mask=mask, other=0.0, eviction_policy="evict_first")
            if GROUPS > 1:
                up_acc += tl.dot(as_type_of(up, x), x) * up_scales[:, None]
                up_scales = tl.load(later + num_columns, mask=has_later, other=0.0)
            else:
                up_acc = tl.dot(as_type_of(up, x), x, up_acc)
    if DEPENDENT:
        # Not sooner: the next kernel's blocks would take the shared memory of ours.
        tl_cuda.gdc_launch_dependents()
    if SPLITS > 1:
        size: tl.constexpr = BLOCK_N * BLOCK_M
        spot = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + rows[None, :]
        mine = partial_ptr + (tile * SPLITS + split).to(tl.int64) * (size * (2 if GATED else 1))
        tl.store(mine + spot, acc)
        if GATED:
            tl.store(mine + size + spot, up_acc)
        tl.debug_barrier()
        if tl.atomic_add(counters_ptr + tile, 1) != SPLITS - 1:
            return
        tl.store(counters_ptr + tile, 0)
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        up_acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for other in tl.static_range(SPLITS):
            part = partial_ptr + (tile * SPLITS + other).to(tl.int64) * (size * (2 if GATED else 1))
            acc += tl.load(part + spot, cache_modifier=".cg")
            if GATED:
                up_acc += tl.load(part + size + spot, cache_modifier=".cg")
    element = y_ptr.dtype.element_ty
    acc *= row_scales(scales_ptr, columns, has_column, GROUPS)[:, None]
    up_acc *= row_scales(scales_ptr, up_columns, has_column, GROUPS)[:, None]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, mask=has_column, other=0.0).to(tl.float32)[:, None]
    if GATED:
        gate = acc.to(element).to(tl.float32)
        acc = (gate * tl.sigmoid(gate)).to(element) * up_acc.to(element)
    y_at = y_ptr + rows[None, :] * num_columns + columns[:, None]
    tl.store(y_at, acc.to(element), mask=has_row[None, :] & has_column[:, None])


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How a product is divided: block sizes, parts of K, warps and pipeline stages."""

    block_n: int
    block_k: int
    splits: int = 1
    num_warps: int = 4
    num_stages: int = 3


MAX_ROWS = 64
PARTIAL_ELEMENTS = 1 << 22
MAX_TILES = 1 << 14


class LinearWorkspace:
    """Room for the parts of K that are added up last; one for all layers of a device."""

    def __init__(self, device: torch.device) -> None:
        self.partial = torch.empty(PARTIAL_ELEMENTS, dtype=torch.float32, device=device)
        self.counters = torch.zeros(MAX_TILES, dtype=torch.int32, device=device)


def _groups(scales: torch.Tensor | None) -> int:
    """Of a row, with a scale each; 0: there are none."""
    return 0 if scales is None else len(scales)


def _scales_and_bias(
    x: torch.Tensor, scales: torch.Tensor | None, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernels take; anything for one that is not there."""
    return x if scales is None else scales, x if bias is None else bias


def one_row(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scales: torch.Tensor | None = None,
    gated: bool = False,
    tile: Tile,
) -> torch.Tensor:
    """X [1, K] with weight [N, K] -> [1, N]; gated: weight [2 N, K], silu(first) * second.

    scales [G, N] fp32: factors of the weights, of G equal groups of a row (of powers of two).
    """
    num_columns = weight.shape[0] // (2 if gated else 1)
    y = x.new_empty((1, num_columns))
    _one_row[(triton.cdiv(num_columns, tile.block_n),)](
        x, weight, *_scales_and_bias(x, scales, bias), y, num_columns,
        K=weight.shape[1], GATED=gated, HAS_BIAS=bias is not None, GROUPS=_groups(scales),
        BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        num_warps=tile.num_warps, **launch_options(x),
    )  # fmt: skip
    return y


def few_rows(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    workspace: LinearWorkspace,
    scales: torch.Tensor | None = None,
    gated: bool = False,
    tile: Tile,
) -> torch.Tensor:
    """X [M, K] (M <= 64) with weight [N, K] -> [M, N]; the rest as in :func:`one_row`.

    Groups with scales are multiples of the tile's part of K.
    """
    num_rows, num_columns = x.shape[0], weight.shape[0] // (2 if gated else 1)
    block_m = max(16, triton.next_power_of_2(num_rows))
    tiles = triton.cdiv(num_columns, tile.block_n)
    parts = tiles * tile.splits * tile.block_n * block_m * (2 if gated else 1)
    assert tile.splits == 1 or (parts <= PARTIAL_ELEMENTS and tiles <= MAX_TILES)
    y = x.new_empty((num_rows, num_columns))
    _few_rows[(tiles, tile.splits)](
        x, weight, *_scales_and_bias(x, scales, bias), y, workspace.partial, workspace.counters,
        num_rows, num_columns, K=weight.shape[1], GATED=gated, HAS_BIAS=bias is not None,
        GROUPS=_groups(scales), SPLITS=tile.splits, BLOCK_M=block_m,
        BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        THREADS=32 * tile.num_warps, num_warps=tile.num_warps, num_stages=tile.num_stages, **launch_options(x),
    )  # fmt: skip
    return y
