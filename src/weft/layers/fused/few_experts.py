"""Experts for few rows: which kernel with which tile (few_experts_kernels.py says how they work).

Shapes: R rows, k experts a row, S = R k slots, e experts, h hidden size, i inner size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from weft.layers.fused import few_experts_kernels as kernels
from weft.layers.fused.language import launch_options
from weft.layers.fused.skinny_linear import PARTIAL_ELEMENTS, LinearWorkspace
from weft.vocabulary.feed_forward_kinds import Activation, ClampedSwiglu
from weft.vocabulary.routes import Routes


@dataclass(frozen=True, kw_only=True)
class ExpertTile:
    """How the work of one of the two kernels is divided: block sizes, warps, pipeline stages."""

    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True, kw_only=True)
class ExpertTiles:
    """Of both kernels."""

    inner: ExpertTile
    outer: ExpertTile


ONE_ROW = ExpertTiles(
    inner=ExpertTile(block_n=4, block_k=2048),
    outer=ExpertTile(block_n=16, block_k=128, num_warps=8),
)
SOME_ROWS = ExpertTiles(
    inner=ExpertTile(block_n=64, block_k=64, num_stages=4),
    outer=ExpertTile(block_n=128, block_k=64, num_stages=3),
)
SOME_ROWS_SCALED = ExpertTiles(
    inner=ExpertTile(block_n=64, block_k=128, num_warps=2, num_stages=3),
    outer=ExpertTile(block_n=64, block_k=128, num_warps=2, num_stages=4),
)
"""Two warps: four would read 8-bit weights out of shared memory by single bytes."""
MAX_ROWS = 64
_ROWS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class ExpertWeights:
    """gate_up [e 2 i, h], down [h, e i], biases [e 2 i] and [e h]; how they are used.

    Scales [G, e 2 i] and [e G, h]: of G equal groups of each expert's rows.
    """

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_scales: torch.Tensor | None = None
    down_scales: torch.Tensor | None = None
    inner_bias: torch.Tensor | None = None
    outer_bias: torch.Tensor | None = None
    activation: Activation = "silu"
    weighs_inputs: bool = False

    @property
    def options(self) -> dict[str, bool | float]:
        """Of the first kernel."""
        clamp = self.activation if isinstance(self.activation, ClampedSwiglu) else None
        return {
            "HAS_BIAS": self.inner_bias is not None,
            "WEIGHS_INPUTS": self.weighs_inputs,
            "CLAMPED": clamp is not None,
            "ALPHA": clamp.alpha if clamp else 0.0,
            "LIMIT": clamp.limit if clamp else 0.0,
        }


def tiles_for(num_rows: int, *, is_scaled: bool) -> ExpertTiles:
    """The fastest that were measured (benchmarks/expert_kernels.py)."""
    if num_rows == 1:
        return ONE_ROW
    return SOME_ROWS_SCALED if is_scaled else SOME_ROWS


def takes(x: torch.Tensor, routes: Routes, weights: ExpertWeights) -> bool:
    """Whether the kernels know the activation and such groups of scales, for so few rows."""
    known = weights.activation == "silu" or isinstance(weights.activation, ClampedSwiglu)
    is_small = len(x) <= MAX_ROWS and routes.ids.numel() * x.shape[1] <= PARTIAL_ELEMENTS
    if weights.gate_up_scales is None or weights.down_scales is None:
        return known and is_small
    group = weights.gate_up.shape[1] // len(weights.gate_up_scales)
    down_group, width = (
        weights.down.shape[1] // count for count in (len(weights.down_scales), routes.nobody)
    )
    fits = _fits(group, weights.gate_up.shape[1]) and _fits(down_group, width)
    return known and is_small and fits


def _fits(group: int, row: int) -> bool:
    """A whole row, or a power of two that the matrix units take."""
    return group == row or (group >= 32 and not group & (group - 1))


def few_experts(
    x: torch.Tensor,
    routes: Routes,
    weights: ExpertWeights,
    *,
    workspace: LinearWorkspace,
    tiles: ExpertTiles | None = None,
) -> torch.Tensor:
    """Rows x [R, h] that ``takes`` knows -> weighted sums of their experts' outputs [R, h]."""
    (num_rows, hidden), top = x.shape, routes.ids.shape[1]
    tiles = tiles or tiles_for(num_rows, is_scaled=weights.gate_up_scales is not None)
    width = weights.down.shape[1] // routes.nobody
    inner = x.new_empty((num_rows * top, width))
    _inner_rows(x, routes, weights, inner, tiles.inner)
    out = torch.empty_like(x)
    scales, bias, tile = weights.down_scales, weights.outer_bias, tiles.outer
    groups = 0 if scales is None else len(scales) // routes.nobody
    given = (
        inner, weights.down, x if scales is None else scales, x if bias is None else bias,
        routes.ids, routes.weights, out,
    )  # fmt: skip
    options = {
        "WIDTH": width, "TOP": top, "SLOTS": triton.next_power_of_2(num_rows * top),
        "GROUPS": groups, "HAS_BIAS": bias is not None, "WEIGHS_INPUTS": weights.weighs_inputs,
        "BLOCK_N": tile.block_n, "BLOCK_K": _part_of(width, groups, tile),
        "num_warps": tile.num_warps, **launch_options(x),
    }  # fmt: skip
    blocks = triton.cdiv(hidden, tile.block_n)
    if num_rows == 1:
        if groups > 1:
            options["BLOCK_K"] = width // groups
        kernels.outer_of_one_row_kernel[(blocks,)](*given, routes.nobody, hidden, **options)
        return out
    kernels.outer_kernel[(blocks, num_rows * top)](
        *given, workspace.partial, workspace.counters, num_rows, routes.nobody, hidden,
        BLOCK_M=_ROWS_AT_ONCE, num_stages=tile.num_stages, **options,
    )  # fmt: skip
    return out


def _part_of(size: int, groups: int, tile: ExpertTile) -> int:
    """How much of a row a block takes at once: not more than a group with a scale of its own."""
    group = size // groups if groups > 1 else triton.next_power_of_2(size)
    return min(tile.block_k, max(16, group))


def _inner_rows(
    x: torch.Tensor, routes: Routes, weights: ExpertWeights, inner: torch.Tensor, tile: ExpertTile
) -> None:
    """The slots' inner rows [S, i]."""
    (num_slots, width), hidden = inner.shape, x.shape[1]
    scales, bias = weights.gate_up_scales, weights.inner_bias
    groups = 0 if scales is None else len(scales)
    given = (
        x, weights.gate_up, x if scales is None else scales, x if bias is None else bias,
        routes.ids, routes.weights, inner,
    )  # fmt: skip
    options = {
        "K": hidden, "WIDTH": width, "GROUPS": groups, "BLOCK_N": tile.block_n,
        "num_warps": tile.num_warps, **weights.options, **launch_options(x),
    }  # fmt: skip
    grid = triton.cdiv(width, tile.block_n), num_slots
    if len(x) == 1:
        block_k = min(tile.block_k, triton.next_power_of_2(hidden))
        kernels.inner_of_one_row_kernel[grid](*given, routes.nobody, BLOCK_K=block_k, **options)
        return
    kernels.inner_kernel[grid](
        *given, num_slots, routes.nobody, TOP=routes.ids.shape[1],
        SLOTS=triton.next_power_of_2(num_slots), BLOCK_M=_ROWS_AT_ONCE,
        BLOCK_K=_part_of(hidden, groups, tile), num_stages=tile.num_stages, **options,
    )  # fmt: skip
