"""Large messages over TCP: several launches that together cover a tensor exactly once."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from weft.kernels.communicator import DeviceAllReduce
from weft.kernels.selection import GroupShape, Variant

BFLOAT16_BYTES = 2


class Launches:
    """A kernel that writes down how it was launched: input, output, elements, threads in all."""

    def __init__(self) -> None:
        self.arguments = [ctypes.c_uint64() for _ in range(3)]
        self.made: list[tuple[int, int, int, int]] = []

    def launch(self, blocks: int, threads: int, stream: int) -> None:
        source, target, count = (argument.value for argument in self.arguments)
        self.made.append((source, target, count, blocks * threads))


def communicator(topology: GroupShape, kernel: Launches) -> DeviceAllReduce:
    """One without a GPU and without peers."""
    made: Any = object.__new__(DeviceAllReduce)
    made.topology, made._plans = topology, {}
    made._end = SimpleNamespace(arguments=lambda name: [])
    made.device, made.enter, made.kernel = torch.device("cpu"), (lambda: 0), (lambda *_: kernel)
    return made


@pytest.mark.parametrize("count", [7, 1081344, 1081345, 5_000_003])
@pytest.mark.parametrize(("threads", "max_blocks"), [(512, 132), (64, 264)])
@pytest.mark.parametrize("transport", ["tcp", "peer"])
def test_pieces_cover_a_message_once(
    count: int, threads: int, max_blocks: int, transport: str
) -> None:
    topology = GroupShape(num_ranks=4, nodes=2, transport=transport)
    name = topology.algorithms[-1]
    kernel = Launches()
    comm = communicator(topology, kernel)
    tensor, out = (torch.empty(count, dtype=torch.bfloat16) for _ in range(2))
    variant = Variant(algorithm=name, threads=threads, max_blocks=max_blocks)
    comm.use_variant(variant, tensor.dtype, count)
    comm.all_reduce(tensor, out)
    done = 0
    for source, target, elements, in_all in kernel.made:
        assert source == tensor.data_ptr() + done * BFLOAT16_BYTES
        assert target == out.data_ptr() + done * BFLOAT16_BYTES
        if transport == "tcp":  # a vector of every place for each thread, and no second turn
            assert in_all * 16 * topology.ranks_per_node >= elements * BFLOAT16_BYTES
        done += elements
    assert done == count
    if transport == "peer":
        assert len(kernel.made) == 1
