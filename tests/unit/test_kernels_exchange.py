"""The launches of the exchange with experts: which rows the kernels take, and what they are told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from weft.kernels import exchange_kernels as kernels
from weft.kernels.endpoint import CommRecord
from weft.kernels.selection import GroupShape, capacity


@dataclass
class Launch:
    """Stands for a kernel and notes its launches."""

    arguments: list[Any]
    shapes: list[tuple[int, int, int]] = field(default_factory=list)

    def launch(self, *shape: int) -> None:
        self.shapes.append(shape)


@dataclass
class Comm:
    """What the launches need of a communicator."""

    topology: GroupShape = field(default_factory=lambda: GroupShape(num_ranks=4))
    mailbox_bytes: int = capacity(GroupShape(num_ranks=4), 1 << 20)
    num_ranks: int = 4
    comm: CommRecord = field(default_factory=CommRecord)
    kernels: dict[str, Launch] = field(default_factory=dict)

    def kernel(self, source: str, name: str, dtype: torch.dtype, arguments: list[Any]) -> Launch:
        assert source == kernels.SOURCE
        assert dtype == torch.bfloat16
        return self.kernels.setdefault(name, Launch(arguments))

    def enter(self) -> int:
        return 7


def rows_of(count: int, hidden: int = 64, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.zeros(count, hidden, dtype=dtype)


def ids_of(count: int, chosen: int = 4) -> torch.Tensor:
    return torch.zeros(count, chosen, dtype=torch.int64)


@pytest.mark.parametrize(
    ("rows", "ids", "share", "taken"),
    [
        (rows_of(1), ids_of(1), 8, True),
        (rows_of(256), ids_of(256, 64), 65535, True),
        (rows_of(257), ids_of(257), 8, False),
        (rows_of(0), ids_of(0), 8, False),
        (rows_of(3), ids_of(3, 65), 8, False),
        (rows_of(3), ids_of(3), 65536, False),
        (rows_of(3, 68), ids_of(3), 8, False),
        (rows_of(3, 68, torch.float32), ids_of(3), 8, True),
        (rows_of(3, 64, torch.float64), ids_of(3), 8, False),
        (rows_of(256, 4096), ids_of(256), 8, False),
    ],
)
def test_which_rows_the_kernels_take(
    rows: torch.Tensor, ids: torch.Tensor, share: int, *, taken: bool
) -> None:
    assert kernels.takes(Comm(), rows, ids, share) is taken  # type: ignore[arg-type]
    between_hosts = replace(Comm().topology, nodes=2, transport="tcp")
    assert not kernels.takes(Comm(topology=between_hosts), rows, ids, share)  # type: ignore[arg-type]


def test_what_a_dispatch_and_its_combine_are_told() -> None:
    comm: Any = Comm()
    backing = torch.zeros(3 * 96 + 1, dtype=torch.bfloat16)[1:].view(3, 96)  # off a multiple of 16
    there = kernels.dispatch(comm, backing, ids_of(3, 5), torch.ones(3, 5), 32)
    assert there.passages is not None
    (launch,) = comm.kernels.values()
    record = launch.arguments[-1]
    assert (record.num_rows, record.row_vectors, record.chosen, record.share) == (3, 12, 5, 32)
    assert record.rows % 16 == 0 != backing.data_ptr() % 16
    assert record.rows_out == there.rows.data_ptr()
    assert record.experts_out == there.ids.data_ptr()
    assert record.weights_out == there.weights.data_ptr()
    assert record.passages == there.passages.data_ptr()
    assert there.rows.shape == (12, 96)
    assert there.ids.shape == there.weights.shape == (12, 5)
    out = kernels.combine(comm, there.rows, there.passages)
    record = comm.kernels["combine_rows"].arguments[-1]
    assert (record.num_rows, record.row_vectors, out.shape) == (3, 12, (3, 96))
    assert (record.partial, record.rows_out) == (there.rows.data_ptr(), out.data_ptr())
    assert [one.shapes for one in comm.kernels.values()] == [[(3, 32, 7)]] * 2
    wide = kernels.dispatch(comm, rows_of(2, 8192), ids_of(2), torch.ones(2, 4), 32)
    assert comm.kernels["dispatch_rows"].shapes[-1] == (2, kernels.MAX_THREADS, 7)
    assert wide.rows.shape == (8, 8192)
