"""Fused all-reduce + residual addition + RMSNorm: choose the kernel and launch it."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch

from weft.kernels import selection
from weft.kernels.driver import Kernel
from weft.kernels.modules import ELEMENTS

if TYPE_CHECKING:
    from weft.kernels.communicator import DeviceAllReduce

SOURCE = "residual_rms_norm.cu"
FUSED_MAX_BYTES = {2: 4 << 20, 3: 512 << 10, 4: 512 << 10}  # above: two kernels are faster
FUSED_MAX_BYTES_MANY = 64 << 10
MAX_ROW_BYTES = 2048 * selection.VECTOR_BYTES  # 64 warps of a cluster
THREADS = 128
MAX_CLUSTER = 8
MAX_BLOCKS = 264


class RowsRecord(ctypes.Structure):
    """``struct Rows`` of residual_rms_norm.cu."""

    _fields_ = (
        ("input", ctypes.c_uint64),
        ("residual", ctypes.c_uint64),
        ("residual_out", ctypes.c_uint64),
        ("weight", ctypes.c_uint64),
        ("output", ctypes.c_uint64),
        ("num_rows", ctypes.c_uint32),
        ("row_vectors", ctypes.c_uint32),
        ("per_element", ctypes.c_float),
        ("epsilon", ctypes.c_float),
    )


def run(
    communicator: DeviceAllReduce,
    tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    epsilon: float,
    out: torch.Tensor,
    residual_out: torch.Tensor,
) -> None:
    """See DeviceAllReduce.all_reduce_residual_rms_norm; call ``takes`` first."""
    num_rows, hidden = tensor.numel() // tensor.shape[-1], tensor.shape[-1]
    if num_rows == 0:
        return
    fused = fits_one_kernel(communicator, tensor.numel() * tensor.element_size())
    if not fused:
        tensor = communicator.all_reduce(tensor, out)
    vectors = hidden * tensor.element_size() // selection.VECTOR_BYTES
    cluster, threads = shape(vectors, num_rows)
    kernel = _kernel(communicator, tensor.dtype, cluster, fused=fused)
    rows = kernel.arguments[-1]
    rows.input, rows.residual = tensor.data_ptr(), residual.data_ptr()
    rows.residual_out = residual_out.data_ptr()
    rows.weight, rows.output = weight.data_ptr(), out.data_ptr()
    rows.num_rows, rows.row_vectors = num_rows, vectors
    rows.per_element, rows.epsilon = 1 / hidden, epsilon
    rows_at_a_time = min(num_rows, MAX_BLOCKS // cluster)
    kernel.launch(cluster, threads, communicator.enter(), rows_at_a_time)


def fits_one_kernel(communicator: DeviceAllReduce, num_bytes: int) -> bool:
    """Whether the fused kernel takes a message of this size: one-shot is worth it and fits."""
    topology = communicator.topology
    limit = FUSED_MAX_BYTES.get(topology.num_ranks, FUSED_MAX_BYTES_MANY)
    fits = topology.needs("one_shot", num_bytes) <= communicator.mailbox_bytes
    return "one_shot" in topology.algorithms and num_bytes <= limit and fits


def shape(vectors: int, num_rows: int) -> tuple[int, int]:
    """(blocks of a cluster, threads of a block) for rows of ``vectors`` 16-byte vectors.

    Few rows spread over as many multiprocessors as a cluster can; many rows fill them anyway.
    """
    cluster = 1
    while (
        cluster < MAX_CLUSTER
        and vectors > cluster * THREADS
        and (vectors > cluster * 1024 or num_rows * cluster * 2 <= MAX_BLOCKS)
    ):
        cluster *= 2
    return cluster, -(-vectors // (cluster * 32)) * 32


def takes(
    tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    residual_out: torch.Tensor,
    device: torch.device,
) -> bool:
    """Whether the kernels run on these: rows of whole aligned vectors, of one type and shape."""
    hidden = tensor.shape[-1] if tensor.dim() else 0
    row_bytes = hidden * tensor.element_size()
    if tensor.dtype not in ELEMENTS or weight.shape != (hidden,):
        return False
    if row_bytes == 0 or row_bytes % selection.VECTOR_BYTES or row_bytes > MAX_ROW_BYTES:
        return False
    if not tensor.shape == residual.shape == out.shape == residual_out.shape:
        return False
    return all(
        one.dtype == tensor.dtype
        and one.device == device
        and one.is_contiguous()
        and one.data_ptr() % selection.VECTOR_BYTES == 0
        for one in (tensor, residual, weight, out, residual_out)
    )


def _kernel(
    communicator: DeviceAllReduce, dtype: torch.dtype, cluster: int, *, fused: bool
) -> Kernel:
    arguments: list[Any] = [communicator.comm, RowsRecord()] if fused else [RowsRecord()]
    name = "all_reduce_residual_rms_norm" if fused else "residual_rms_norm"
    return communicator.kernel(SOURCE, name, dtype, arguments, cluster)
