"""The exchange of rows with experts over peer memory: records and launches of exchange.cu.

Shapes as in exchange.py.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

import torch

from weft.kernels.modules import ELEMENTS
from weft.kernels.selection import VECTOR_BYTES
from weft.vocabulary.routes import Routes

if TYPE_CHECKING:
    from weft.kernels.communicator import DeviceAllReduce

SOURCE: Final = "exchange.cu"
MAX_ROWS: Final = 256  # of a rank; a block handles one
MAX_THREADS: Final = 512
MAX_CHOSEN: Final = 64  # the threads of a warp handle two each
MAX_SHARE: Final = (1 << 16) - 1  # kComes of exchange.cu


class DispatchRecord(ctypes.Structure):
    """``struct Dispatch`` of exchange.cu."""

    _fields_ = (
        ("rows", ctypes.c_uint64),
        ("experts", ctypes.c_uint64),
        ("weights", ctypes.c_uint64),
        ("rows_out", ctypes.c_uint64),
        ("experts_out", ctypes.c_uint64),
        ("weights_out", ctypes.c_uint64),
        ("passages", ctypes.c_uint64),
        ("num_rows", ctypes.c_uint32),
        ("row_vectors", ctypes.c_uint32),
        ("chosen", ctypes.c_uint32),
        ("share", ctypes.c_uint32),
    )


class CombineRecord(ctypes.Structure):
    """``struct Combine`` of exchange.cu."""

    _fields_ = (
        ("partial", ctypes.c_uint64),
        ("passages", ctypes.c_uint64),
        ("rows_out", ctypes.c_uint64),
        ("num_rows", ctypes.c_uint32),
        ("row_vectors", ctypes.c_uint32),
    )


def takes(comm: DeviceAllReduce, rows: torch.Tensor, routes: Routes) -> bool:
    """Whether the kernels exchange such rows: the same answer on all ranks, which bring as many."""
    (num_rows, chosen), row_bytes = routes.ids.shape, rows.shape[1] * rows.element_size()
    if comm.topology.transport != "peer" or rows.dtype not in ELEMENTS or row_bytes % VECTOR_BYTES:
        return False
    too_many = chosen > MAX_CHOSEN or routes.nobody > MAX_SHARE * comm.num_ranks
    if not 0 < num_rows <= MAX_ROWS or too_many or row_bytes == 0:
        return False
    needed = mailbox_bytes(comm.num_ranks, num_rows, row_bytes // VECTOR_BYTES, chosen)
    return needed <= comm.mailbox_bytes


def mailbox_bytes(num_ranks: int, num_rows: int, row_vectors: int, chosen: int) -> int:
    """What a dispatch, and the combine after it, take of a mailbox."""
    heads = -(-chosen // 2)
    return num_ranks * (1 + num_rows * (heads + row_vectors)) * VECTOR_BYTES


def dispatch(
    comm: DeviceAllReduce, rows: torch.Tensor, routes: Routes
) -> tuple[torch.Tensor, Routes]:
    """See Reducer.dispatch; call ``takes`` first. Rows that no expert here has are zeros."""
    (num_rows, chosen), num_ranks = routes.ids.shape, comm.num_ranks
    rows, ids, weights = _aligned(rows), routes.ids.contiguous(), routes.weights.contiguous()
    there = rows.new_empty((num_ranks * num_rows, rows.shape[1]))
    passages = torch.empty(num_rows, dtype=torch.int32, device=rows.device)
    here = Routes(
        ids=ids.new_empty((num_ranks * num_rows, chosen)),
        weights=weights.new_empty((num_ranks * num_rows, chosen)),
        nobody=routes.nobody // num_ranks,
        passages=passages,
    )
    kernel = comm.kernel(SOURCE, "dispatch_rows", rows.dtype, [comm.comm, DispatchRecord()])
    record = kernel.arguments[-1]
    record.rows, record.experts, record.weights = _addresses(rows, ids, weights)
    record.rows_out, record.passages = _addresses(there, passages)
    record.experts_out, record.weights_out = _addresses(here.ids, here.weights)
    record.num_rows, record.row_vectors = num_rows, _vectors(rows)
    record.chosen, record.share = chosen, here.nobody
    kernel.launch(num_rows, _threads(rows), comm.enter())
    return there, here


def combine(comm: DeviceAllReduce, partial: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """See Reducer.combine."""
    partial = _aligned(partial)
    out = partial.new_empty((len(passages), partial.shape[1]))
    kernel = comm.kernel(SOURCE, "combine_rows", partial.dtype, [comm.comm, CombineRecord()])
    record = kernel.arguments[-1]
    record.partial, record.passages, record.rows_out = _addresses(partial, passages, out)
    record.num_rows, record.row_vectors = len(passages), _vectors(partial)
    kernel.launch(len(passages), _threads(partial), comm.enter())
    return out


def _aligned(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.contiguous()
    return rows if rows.data_ptr() % VECTOR_BYTES == 0 else rows.clone()


def _addresses(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _vectors(rows: torch.Tensor) -> int:
    return rows.shape[1] * rows.element_size() // VECTOR_BYTES


def _threads(rows: torch.Tensor) -> int:
    """Of a block: one for each vector of a row, in whole warps."""
    return min(MAX_THREADS, -(-_vectors(rows) // 32) * 32)
