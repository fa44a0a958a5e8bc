"""Experts for few rows, bound by reading the weights of those experts that are taken, once.

A slot is one of the R k places of the routes. A block takes one slot and some columns; the first
slot of an expert does the work for all slots of that expert, the others leave at once, so nothing
is sorted in front. Two kernels: activation(gate) * up of all slots, and the weighted sums.

Shapes: R rows, k experts a row, S = R k slots, e experts, h hidden size, i inner size.
Gate and up rows [e (2 i), h] alternate by expert; down [h, e i].
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

from weft.layers.fused.language import as_type_of, begin
from weft.layers.fused.skinny_linear import products_of, row_scales


@triton.jit
def _activated(gate, up, CLAMPED: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """Gate and up projection in fp32, as the model's type has them -> their product."""
    if CLAMPED:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
        return gate * tl.sigmoid(ALPHA * gate) * (up + 1)
    return gate * tl.sigmoid(gate) * up


@triton.jit
def _slots_of(ids_ptr, slot, num_slots, SLOTS: tl.constexpr):
    """The slot's expert, who else has it [SLOTS], and whether the slot is its first."""
    slots = tl.arange(0, SLOTS)
    expert = tl.load(ids_ptr + slot)
    same = (tl.load(ids_ptr + slots, mask=slots < num_slots, other=-1) == expert).to(tl.int32)
    first = tl.min(tl.where(same > 0, slots, SLOTS), axis=0)
    return expert, same, first == slot


@triton.jit
def _some_slots(same, start, SLOTS: tl.constexpr, BLOCK_M: tl.constexpr):
    """The slots [BLOCK_M] of those marked that come from the ``start``-th on."""
    place = tl.cumsum(same, axis=0) - 1
    wanted = start + tl.arange(0, BLOCK_M)
    matches = (same[:, None] > 0) & (place[:, None] == wanted[None, :])
    return tl.sum(tl.where(matches, tl.arange(0, SLOTS)[:, None], 0), axis=0)


@triton.jit(do_not_specialize=["num_slots"])
def inner_kernel(
    x_ptr, w_ptr, scales_ptr, bias_ptr, ids_ptr, weights_ptr, inner_ptr, num_slots, num_experts,
    K: tl.constexpr, WIDTH: tl.constexpr, TOP: tl.constexpr, SLOTS: tl.constexpr,
    GROUPS: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHS_INPUTS: tl.constexpr,
    CLAMPED: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(1)
    if DEPENDENT:
        tl_cuda.gdc_wait()
    expert, same, is_first = _slots_of(ids_ptr, slot, num_slots, SLOTS)
    if (expert >= num_experts) | (is_first == 0):
        return
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    has_column = columns < WIDTH
    w_at = w_ptr + (expert * 2 * WIDTH + columns)[:, None] * K + inner[None, :]
    up_at = w_at + WIDTH * K
    count = tl.sum(same, axis=0)
    element = inner_ptr.dtype.element_ty
    for start in range(0, count, BLOCK_M):
        slots = _some_slots(same, start, SLOTS, BLOCK_M)
        is_slot = start + tl.arange(0, BLOCK_M) < count
        x_at = x_ptr + (slots // TOP)[None, :] * K + inner[:, None]
        if WEIGHS_INPUTS:
            weights = tl.load(weights_ptr + slots, mask=is_slot, other=0.0)
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        up_acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        if GROUPS > 0:
            first = scales_ptr + expert * 2 * WIDTH + columns
            scales = tl.load(first, mask=has_column, other=0.0)
            up_scales = tl.load(first + WIDTH, mask=has_column, other=0.0)
        for k in range(0, K, BLOCK_K):
            has_inner = k + inner < K
            x = tl.load(x_at + k, mask=is_slot[None, :] & has_inner[:, None], other=0.0)
            if WEIGHS_INPUTS:
                x = (x.to(tl.float32) * weights[None, :]).to(x.dtype)
            mask = has_column[:, None] & has_inner[None, :]
            w = tl.load(w_at + k, mask=mask, other=0.0, eviction_policy="evict_first")
            up = tl.load(up_at + k, mask=mask, other=0.0, eviction_policy="evict_first")
            if GROUPS > 1:  # the next scales are asked for while this part is multiplied
                acc += tl.dot(as_type_of(w, x), x) * scales[:, None]
                up_acc += tl.dot(as_type_of(up, x), x) * up_scales[:, None]
                later = first + (k + BLOCK_K) // (K // GROUPS) * num_experts * 2 * WIDTH
                has_later = has_column & (k + BLOCK_K < K)
                scales = tl.load(later, mask=has_later, other=0.0)
                up_scales = tl.load(later + WIDTH, mask=has_later, other=0.0)
            else:
                acc = tl.dot(as_type_of(w, x), x, acc)
                up_acc = tl.dot(as_type_of(up, x), x, up_acc)
        if GROUPS == 1:
            acc *= scales[:, None]
            up_acc *= up_scales[:, None]
        if HAS_BIAS:
            bias_at = bias_ptr + expert * 2 * WIDTH + columns
            acc += tl.load(bias_at, mask=has_column, other=0.0).to(tl.float32)[:, None]
            up_bias = tl.load(bias_at + WIDTH, mask=has_column, other=0.0)
            up_acc += up_bias.to(tl.float32)[:, None]
        gate, up = acc.to(element).to(tl.float32), up_acc.to(element).to(tl.float32)
        out = _activated(gate, up, CLAMPED, ALPHA, LIMIT).to(element)
        out_at = inner_ptr + slots[None, :] * WIDTH + columns[:, None]
        tl.store(out_at, out, mask=is_slot[None, :] & has_column[:, None])


@triton.jit
def inner_of_one_row_kernel(
    x_ptr, w_ptr, scales_ptr, bias_ptr, ids_ptr, weights_ptr, inner_ptr, num_experts,
    K: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr,
    HAS_BIAS: tl.constexpr, WEIGHS_INPUTS: tl.constexpr,
    CLAMPED: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(1)
    begin(DEPENDENT)
    expert = tl.load(ids_ptr + slot)
    if expert >= num_experts:
        return
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    has_column = columns < WIDTH
    rows, count = expert * 2 * WIDTH + columns, num_experts * 2 * WIDTH
    up_rows = rows + WIDTH
    w_at = w_ptr + rows[:, None] * K + inner[None, :]
    up_at = w_at + WIDTH * K
    element = inner_ptr.dtype.element_ty
    SUMS: tl.constexpr = BLOCK_K if GROUPS <= 1 else BLOCK_K // (K // GROUPS)
    acc = tl.zeros([BLOCK_N, SUMS], tl.float32)
    up_acc = tl.zeros([BLOCK_N, SUMS], tl.float32)
    for k in tl.static_range(0, K, BLOCK_K):
        mask = has_column[:, None] & (k + inner < K)[None, :]
        w = tl.load(w_at + k, mask=mask, other=0.0, eviction_policy="evict_first")
        up = tl.load(up_at + k, mask=mask, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_ptr + k + inner, mask=k + inner < K, other=0.0).to(tl.float32)
        if WEIGHS_INPUTS:
            x = (x * tl.load(weights_ptr + slot)).to(element).to(tl.float32)
        acc += products_of(
            w, x, scales_ptr, count, rows, has_column, k, K, GROUPS, BLOCK_N, BLOCK_K
        )
        up_acc += products_of(
            up, x, scales_ptr, count, up_rows, has_column, k, K, GROUPS, BLOCK_N, BLOCK_K
        )
    gate = tl.sum(acc, axis=1) * row_scales(scales_ptr, rows, has_column, GROUPS)
    up = tl.sum(up_acc, axis=1) * row_scales(scales_ptr, up_rows, has_column, GROUPS)
    if HAS_BIAS:
        gate += tl.load(bias_ptr + rows, mask=has_column, other=0.0).to(tl.float32)
        up += tl.load(bias_ptr + up_rows, mask=has_column, other=0.0).to(tl.float32)
    gate, up = gate.to(element).to(tl.float32), up.to(element).to(tl.float32)
    out = _activated(gate, up, CLAMPED, ALPHA, LIMIT).to(element)
    tl.store(inner_ptr + slot * WIDTH + columns, out, mask=has_column)


@triton.jit(do_not_specialize=["num_rows"])
def outer_kernel(
    inner_ptr, w_ptr, scales_ptr, bias_ptr, ids_ptr, weights_ptr, out_ptr, partial_ptr, counters_ptr,
    num_rows, num_experts, hidden,
    WIDTH: tl.constexpr, TOP: tl.constexpr, SLOTS: tl.constexpr,
    GROUPS: tl.constexpr, HAS_BIAS: tl.constexpr, WEIGHS_INPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    tile, slot = tl.program_id(0), tl.program_id(1)
    num_slots = num_rows * TOP
    if DEPENDENT:
        tl_cuda.gdc_wait()
    expert, same, is_first = _slots_of(ids_ptr, slot, num_slots, SLOTS)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    has_column = columns < hidden
    if (expert < num_experts) & (is_first != 0):
        inner = tl.arange(0, BLOCK_K)
        w_at = w_ptr + columns.to(tl.int64)[:, None] * num_experts * WIDTH
        w_at += (expert * WIDTH + inner)[None, :]
        count = tl.sum(same, axis=0)
        for start in range(0, count, BLOCK_M):
            slots = _some_slots(same, start, SLOTS, BLOCK_M)
            is_slot = start + tl.arange(0, BLOCK_M) < count
            x_at = inner_ptr + slots[None, :] * WIDTH + inner[:, None]
            acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            if GROUPS > 0:
                first = scales_ptr + expert * GROUPS * hidden + columns
                scales = tl.load(first, mask=has_column, other=0.0)
            for k in range(0, WIDTH, BLOCK_K):
                has_inner = k + inner < WIDTH
                x = tl.load(x_at + k, mask=is_slot[None, :] & has_inner[:, None], other=0.0)
                mask = has_column[:, None] & has_inner[None, :]
                w = tl.load(w_at + k, mask=mask, other=0.0, eviction_policy="evict_first")
                if GROUPS > 1:
                    acc += tl.dot(as_type_of(w, x), x) * scales[:, None]
                    later = first + (k + BLOCK_K) // (WIDTH // GROUPS) * hidden
                    has_later = has_column & (k + BLOCK_K < WIDTH)
                    scales = tl.load(later, mask=has_later, other=0.0)
                else:
                    acc = tl.dot(as_type_of(w, x), x, acc)
            if GROUPS == 1:
                acc *= scales[:, None]
            if HAS_BIAS:
                bias = tl.load(bias_ptr + expert * hidden + columns, mask=has_column, other=0.0)
                acc += bias.to(tl.float32)[:, None]
            if not WEIGHS_INPUTS:
                acc *= tl.load(weights_ptr + slots, mask=is_slot, other=0.0)[None, :]
            at = partial_ptr + slots[None, :] * hidden + columns[:, None]
            tl.store(at, acc, mask=is_slot[None, :] & has_column[:, None])
    # The last block of these columns adds up each row's slots, in their order.
    tl.debug_barrier()
    if tl.atomic_add(counters_ptr + tile, 1) != num_slots - 1:
        return
    tl.store(counters_ptr + tile, 0)
    if DEPENDENT:
        tl_cuda.gdc_launch_dependents()
    for row in range(0, num_rows, BLOCK_M):
        rows = row + tl.arange(0, BLOCK_M)
        has_row = rows < num_rows
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for place in tl.static_range(TOP):
            slots = rows * TOP + place
            ids = tl.load(ids_ptr + slots, mask=has_row, other=num_experts)
            mask = (ids < num_experts)[:, None] & has_column[None, :]
            at = partial_ptr + slots[:, None] * hidden + columns[None, :]
            total += tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        out_at = out_ptr + rows[:, None] * hidden + columns[None, :]
        total = total.to(out_ptr.dtype.element_ty)
        tl.store(out_at, total, mask=has_row[:, None] & has_column[None, :])


@triton.jit
def outer_of_one_row_kernel(
    inner_ptr, w_ptr, scales_ptr, bias_ptr, ids_ptr, weights_ptr, out_ptr, num_experts, hidden,
    WIDTH: tl.constexpr, TOP: tl.constexpr, SLOTS: tl.constexpr, GROUPS: tl.constexpr,
    HAS_BIAS: tl.constexpr, WEIGHS_INPUTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    has_column = columns < hidden
    slots = tl.arange(0, SLOTS)
    inner = tl.arange(0, BLOCK_K)
    begin(DEPENDENT)
    experts = tl.load(ids_ptr + slots, mask=slots < TOP, other=num_experts)
    is_here = experts < num_experts
    mask = has_column[:, None] & is_here[None, :]
    w_at = w_ptr + columns.to(tl.int64)[:, None, None] * num_experts * WIDTH
    w_at += (experts * WIDTH)[None, :, None] + inner[None, None, :]
    x_at = inner_ptr + slots[:, None] * WIDTH + inner[None, :]
    scales_at = scales_ptr + (experts * GROUPS * hidden)[None, :] + columns[:, None]
    wide = tl.zeros([BLOCK_N, SLOTS, BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_N, SLOTS], tl.float32)
    for k in tl.static_range(0, WIDTH, BLOCK_K):
        has_inner = k + inner < WIDTH
        inside = mask[:, :, None] & has_inner[None, None, :]
        w = tl.load(w_at + k, mask=inside, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_at + k, mask=is_here[:, None] & has_inner[None, :], other=0.0)
        products = w.to(tl.float32) * x.to(tl.float32)[None, :, :]
        if GROUPS > 1:  # a part of WIDTH is a group with scales
            scales = tl.load(scales_at + k // BLOCK_K * hidden, mask=mask, other=0.0)
            sums += tl.sum(products, axis=2) * scales
        else:
            wide += products
    if GROUPS <= 1:
        sums = tl.sum(wide, axis=2)
    if GROUPS == 1:
        sums *= tl.load(scales_at, mask=mask, other=0.0)
    if HAS_BIAS:
        bias_at = bias_ptr + (experts * hidden)[None, :] + columns[:, None]
        sums += tl.load(bias_at, mask=mask, other=0.0).to(tl.float32)
    if not WEIGHS_INPUTS:
        sums *= tl.load(weights_ptr + slots, mask=is_here, other=0.0)[None, :]
    out = tl.sum(sums, axis=1).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + columns, out, mask=has_column)
