"""The launches of the exchange with experts: which rows the kernels take, and what they are told."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from weft.kernels import exchange_kernels as kernels
from weft.kernels.endpoint import CommRecord
from weft.kernels.selection import GroupShape, capacity
from weft.vocabulary.routes import Routes


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


def routes_of(count: int, chosen: int = 4, experts: int = 32) -> Routes:
    ids = torch.zeros(count, chosen, dtype=torch.int64)
    return Routes(ids=ids, weights=torch.ones(count, chosen), nobody=experts)


@pytest.mark.parametrize(
    ("rows", "routes", "taken"),
    [
        (rows_of(1), routes_of(1), True),
        (rows_of(256), routes_of(256, 64, 4 * 65535), True),
        (rows_of(257), routes_of(257), False),
        (rows_of(0), routes_of(0), False),
        (rows_of(3), routes_of(3, 65), False),
        (rows_of(3), routes_of(3, 4, 4 * 65536), False),
        (rows_of(3, 68), routes_of(3), False),
        (rows_of(3, 68, torch.float32), routes_of(3), True),
        (rows_of(3, 64, torch.float64), routes_of(3), False),
        (rows_of(256, 4096), routes_of(256), False),
    ],
)
def test_which_rows_the_kernels_take(rows: torch.Tensor, routes: Routes, *, taken: bool) -> None:
    assert kernels.takes(Comm(), rows, routes) is taken  # type: ignore[arg-type]
    between_hosts = replace(Comm().topology, nodes=2, transport="tcp")
    assert not kernels.takes(Comm(topology=between_hosts), rows, routes)  # type: ignore[arg-type]


def test_what_a_dispatch_and_its_combine_are_told() -> None:
    comm: Any = Comm()
    backing = torch.zeros(3 * 96 + 1, dtype=torch.bfloat16)[1:].view(3, 96)  # off a multiple of 16
    there, here = kernels.dispatch(comm, backing, routes_of(3, 5, 4 * 32))
    assert here.passages is not None
    assert here.nobody == 32
    (launch,) = comm.kernels.values()
    record = launch.arguments[-1]
    assert (record.num_rows, record.row_vectors, record.chosen, record.share) == (3, 12, 5, 32)
    assert record.rows % 16 == 0 != backing.data_ptr() % 16
    assert record.rows_out == there.data_ptr()
    assert record.experts_out == here.ids.data_ptr()
    assert record.weights_out == here.weights.data_ptr()
    assert record.passages == here.passages.data_ptr()
    assert there.shape == (12, 96)
    assert here.ids.shape == here.weights.shape == (12, 5)
    out = kernels.combine(comm, there, here.passages)
    record = comm.kernels["combine_rows"].arguments[-1]
    assert (record.num_rows, record.row_vectors, out.shape) == (3, 12, (3, 96))
    assert (record.partial, record.rows_out) == (there.data_ptr(), out.data_ptr())
    assert [one.shapes for one in comm.kernels.values()] == [[(3, 32, 7)]] * 2
    wide, _ = kernels.dispatch(comm, rows_of(2, 8192), routes_of(2))
    assert comm.kernels["dispatch_rows"].shapes[-1] == (2, kernels.MAX_THREADS, 7)
    assert wide.shape == (8, 8192)
