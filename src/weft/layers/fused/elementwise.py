"""Fused element-wise kernels: residual + RMSNorm, silu * up, rotary embedding + cache write.

Shapes: T token rows, h hidden size, H query heads, K key-value heads, D head_dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from weft.layers.fused.language import begin, launch_options


@triton.jit
def _add_rms_norm(
    x_ptr, residual_ptr, weight_ptr, out_ptr, size, eps,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0)
    begin(DEPENDENT)
    x = tl.load(x_ptr + row * size + columns, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row * size + columns, mask=inside, other=0.0)
        tl.store(residual_ptr + row * size + columns, x, mask=inside)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / size + eps)
    out = (wide * scale).to(x.dtype) * weight
    tl.store(out_ptr + row * size + columns, out, mask=inside)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """rms_norm(x + residual) [T, h]; ``residual`` becomes the sum, in place."""
    num_rows, size = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(size)
    _add_rms_norm[(num_rows,)](
        x, x if residual is None else residual, weight, out, size, eps,
        HAS_RESIDUAL=residual is not None, BLOCK=block,
        num_warps=max(1, min(16, block // 512)), **launch_options(x),
    )  # fmt: skip
    return out


@triton.jit
def _silu_mul(x_ptr, out_ptr, width, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    begin(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x_ptr + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * width + width + columns, mask=inside, other=0.0)
    activated = (gate * tl.sigmoid(gate)).to(up.dtype)
    tl.store(out_ptr + row * width + columns, activated * up, mask=inside)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[T, 2 i] -> [T, i]: silu of the first half times the second."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((num_rows, width))
    block = 2048
    _silu_mul[(num_rows, triton.cdiv(width, block))](
        gate_up, out, width, BLOCK=block, num_warps=8, **launch_options(gate_up)
    )
    return out


@triton.jit
def _rotate_and_store(
    qkv_ptr, cos_sin_ptr, positions_ptr, slots_ptr, keys_ptr, values_ptr,
    query_norm_ptr, key_norm_ptr, eps,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, HAS_NORM: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    position = tl.load(positions_ptr + row)
    half = tl.arange(0, HALF)
    cos = tl.load(cos_sin_ptr + position * 2 * HALF + half)[None, :]
    sin = tl.load(cos_sin_ptr + position * 2 * HALF + HALF + half)[None, :]
    heads = tl.arange(0, BLOCK_HEADS)
    is_query = heads < NUM_HEADS
    is_rotated = heads < NUM_HEADS + NUM_KV_HEADS
    width: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS) * 2 * HALF
    at = qkv_ptr + row * width + heads[:, None] * 2 * HALF + half[None, :]
    first = tl.load(at, mask=is_rotated[:, None], other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=is_rotated[:, None], other=0.0).to(tl.float32)
    if HAS_NORM:
        square = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        scale = tl.rsqrt(square / (2 * HALF) + eps)[:, None]
        q_first, q_second = tl.load(query_norm_ptr + half), tl.load(query_norm_ptr + HALF + half)
        k_first, k_second = tl.load(key_norm_ptr + half), tl.load(key_norm_ptr + HALF + half)
        kind = is_query[:, None]
        first = first * scale * tl.where(kind, q_first[None, :], k_first[None, :])
        second = second * scale * tl.where(kind, q_second[None, :], k_second[None, :])
    turned_first = (first * cos - second * sin).to(qkv_ptr.dtype.element_ty)
    turned_second = (second * cos + first * sin).to(qkv_ptr.dtype.element_ty)
    tl.store(at, turned_first, mask=is_rotated[:, None])
    tl.store(at + HALF, turned_second, mask=is_rotated[:, None])
    is_key = (is_rotated & (heads >= NUM_HEADS))[:, None]
    first_head = slot // BLOCK_SIZE * NUM_KV_HEADS * BLOCK_SIZE + slot % BLOCK_SIZE
    key_at = (first_head + (heads - NUM_HEADS)[:, None] * BLOCK_SIZE) * 2 * HALF
    tl.store(keys_ptr + key_at + half[None, :], turned_first, mask=is_key)
    tl.store(keys_ptr + key_at + HALF + half[None, :], turned_second, mask=is_key)
    is_value = (heads >= NUM_HEADS + NUM_KV_HEADS) & (heads < NUM_HEADS + 2 * NUM_KV_HEADS)
    value_at = key_at - NUM_KV_HEADS * BLOCK_SIZE * 2 * HALF
    for part in tl.static_range(2):
        value = tl.load(at + part * HALF, mask=is_value[:, None], other=0.0)
        tl.store(values_ptr + value_at + part * HALF + half[None, :], value, mask=is_value[:, None])


def rotate_and_store(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    *,
    block_size: int,
) -> None:
    """Rotate the queries and keys of qkv [T, (H + 2 K) D] in place, copy keys and values away.

    The cache's memory is used as [blocks, K, block size, D] (see decode_attention.py). cos_sin [positions, D]: cosines of the D / 2 angles, then sines, fp32; keys, values
    [P, K, D] are the cache; norms: weights [D] of the query and key norm, where there are.
    """
    num_kv_heads, head_dim = keys.shape[1:]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    query_norm, key_norm = norms or (qkv, qkv)
    _rotate_and_store[(qkv.shape[0],)](
        qkv, cos_sin, positions, slots, keys, values, query_norm, key_norm, eps,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=head_dim // 2,
        BLOCK_HEADS=triton.next_power_of_2(num_heads + 2 * num_kv_heads),
        BLOCK_SIZE=block_size, HAS_NORM=norms is not None, num_warps=8, **launch_options(qkv),
    )  # fmt: skip
