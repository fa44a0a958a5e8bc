"""Run an all-reduce program on CPU tensors: shared memory in a node, sockets between nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from weft.allreduce.algorithms import PROGRAMS, build
from weft.allreduce.errors import MismatchError
from weft.allreduce.program import Program, Round, Topology
from weft.comm.shared_memory import OUTBOX_BYTES, Header, Segment
from weft.comm.sockets import Message, SocketLink
from weft.errors import CommunicationError

DTYPES: Final = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int32,
    torch.int64,
)
"""The element types that programs add; their places here name them in headers."""

_ALGORITHM_NAMES: Final = tuple(PROGRAMS)
_ALIGNMENT: Final = 64
_MAX_PLANS: Final = 512

_Key = tuple[str, int, torch.dtype]


@dataclass(slots=True)
class _Sum:
    """Elements ``start`` to ``stop`` become the sum of ``parts`` in order.

    A part is (a neighbour to wait for, what it or another node sent); None: own values.
    """

    start: int
    stop: int
    parts: list[tuple[int | None, torch.Tensor | None]]


@dataclass(slots=True)
class _PlannedStep:
    name: str
    copies: list[tuple[torch.Tensor, int, int]] = field(default_factory=list)
    far_sends: list[tuple[int, int, int]] = field(default_factory=list)
    far_receives: list[Message] = field(default_factory=list)
    sums: list[_Sum] = field(default_factory=list)


class ProgramRunner:
    """Runs programs for one rank of a group that shares memory in each node.

    ``segment`` is shared by the ranks of this node; ``link`` reaches the other nodes (None
    where there is one node). All ranks call in the same order.
    """

    def __init__(
        self, topology: Topology, rank: int, segment: Segment, link: SocketLink | None
    ) -> None:
        self.topology, self.rank = topology, rank
        self._segment, self._link = segment, link
        self._node = topology.node_members(rank)
        self._plans: dict[_Key, tuple[list[_PlannedStep], list[_PlannedStep]]] = {}
        self._limits: dict[tuple[str, torch.dtype], int] = {}

    def all_reduce(self, flat: torch.Tensor, algorithm: str) -> None:
        """Sum the one-dimensional, contiguous ``flat`` over the group, in place."""
        limit = self._limit(algorithm, flat.dtype)
        for start in range(0, max(flat.numel(), 1), limit):
            self._call(flat[start : start + limit], flat.numel(), algorithm)

    def _limit(self, algorithm: str, dtype: torch.dtype) -> int:
        """Most elements of a call, so that everything a rank publishes fits its outbox."""
        key = (algorithm, dtype)
        if key not in self._limits:
            sample = 1 << 20
            most = max(
                sum(
                    stop - start
                    for start, stop in _published(
                        self._program(algorithm, sample, rank), self._node
                    )
                )
                for rank in self._node
            )
            per_element = max(most, sample) / sample * dtype.itemsize
            self._limits[key] = int(
                (OUTBOX_BYTES - 4096 - _ALIGNMENT * 2 * self.topology.ranks) / per_element
            )
        return self._limits[key]

    def _program(self, algorithm: str, count: int, rank: int) -> Program:
        return build(algorithm, self.topology, count, rank)

    def _call(self, values: torch.Tensor, total: int, algorithm: str) -> None:
        header = Header(
            count=total,
            dtype=DTYPES.index(values.dtype),
            algorithm=_ALGORITHM_NAMES.index(algorithm),
        )
        buffer = self._segment.begin(header)
        steps = self._plan(algorithm, values.numel(), values.dtype)[buffer]
        try:
            self._publish(steps, 0, values)
            self._agree(header)
            for index, step in enumerate(steps):
                if index:
                    self._publish(steps, index, values)
                self._finish_step(step, index, values)
        except CommunicationError:
            self._segment.give_up()
            raise

    def _publish(self, steps: list[_PlannedStep], index: int, values: torch.Tensor) -> None:
        if steps:
            for view, start, stop in steps[index].copies:
                view.copy_(values[start:stop])
        self._segment.publish(index)

    def _agree(self, header: Header) -> None:
        """Compare the headers of all ranks; MismatchError on every rank where they differ."""
        segment = self._segment
        headers = []
        for place in range(len(self._node)):
            segment.wait(place, 0, "start")
            headers.append(segment.header(place))
        if self._link is None and all(item == header for item in headers):
            return
        fields = torch.tensor([[item.count, item.dtype, item.algorithm] for item in headers])
        low, high = fields.amin(0), fields.amax(0)
        if self._link is not None:
            self._link.agree(low, high, self.topology.rail_members(self.rank), segment.epoch)
        if not torch.equal(low, high):
            raise _mismatch(low.tolist(), high.tolist())

    def _finish_step(self, step: _PlannedStep, index: int, values: torch.Tensor) -> None:
        if self._link is not None and (step.far_sends or step.far_receives):
            sends = [(peer, values[start:stop]) for peer, start, stop in step.far_sends]
            self._link.exchange(sends, step.far_receives, step.name, self._segment.epoch)
        for item in step.sums:
            for near, _ in item.parts:
                if near is not None:
                    self._segment.wait(near, index, step.name)
            own = values[item.start : item.stop]
            _add([own if part is None else part for _, part in item.parts], own)

    def _plan(
        self, algorithm: str, count: int, dtype: torch.dtype
    ) -> tuple[list[_PlannedStep], list[_PlannedStep]]:
        key = (algorithm, count, dtype)
        if key not in self._plans:
            if len(self._plans) == _MAX_PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = (self._make_plan(*key, 0), self._make_plan(*key, 1))
        return self._plans[key]

    def _make_plan(
        self, algorithm: str, count: int, dtype: torch.dtype, buffer: int
    ) -> list[_PlannedStep]:
        views = {
            rank: self._outbox_views(algorithm, count, dtype, buffer, rank) for rank in self._node
        }
        program = self._program(algorithm, count, self.rank)
        return [self._plan_step(index, step, dtype, views) for index, step in enumerate(program)]

    def _outbox_views(
        self, algorithm: str, count: int, dtype: torch.dtype, buffer: int, rank: int
    ) -> dict[tuple[int, int, int], torch.Tensor]:
        """Where in ``rank``'s outbox each (step, start, stop) of its program is."""
        views = {}
        first = 0
        for index, step in enumerate(self._program(algorithm, count, rank)):
            for start, stop in _near_slices(step, self._node):
                size = (stop - start) * dtype.itemsize
                memory = self._segment.outbox(rank - self._node.start, buffer, first, first + size)
                views[index, start, stop] = memory.view(dtype)
                first += -(-size // _ALIGNMENT) * _ALIGNMENT
        return views

    def _plan_step(
        self,
        index: int,
        step: Round,
        dtype: torch.dtype,
        views: dict[int, dict[tuple[int, int, int], torch.Tensor]],
    ) -> _PlannedStep:
        planned = _PlannedStep(step.name)
        for start, stop in _near_slices(step, self._node):
            planned.copies.append((views[self.rank][index, start, stop], start, stop))
        for send in step.sends:
            if send.target not in self._node:
                planned.far_sends.append((send.target, send.start, send.stop))
        for combine in step.combines:
            item = _Sum(combine.start, combine.stop, [])
            for source in combine.sources:
                if source == self.rank:
                    item.parts.append((None, None))
                elif source in self._node:
                    view = _covering(views[source], index, combine.start, combine.stop)
                    item.parts.append((source - self._node.start, view))
                else:
                    message = torch.empty(combine.stop - combine.start, dtype=dtype)
                    planned.far_receives.append((source, message))
                    item.parts.append((None, message))
            planned.sums.append(item)
        return planned


def _near_slices(step: Round, node: range) -> list[tuple[int, int]]:
    """What a rank publishes in a step: neighbouring slices as one, no slice twice.

    A reduce-scatter step sends every peer another part of the message; the parts lie side
    by side, so one copy publishes them all.
    """
    bounds = sorted({(send.start, send.stop) for send in step.sends if send.target in node})
    merged: list[tuple[int, int]] = []
    for start, stop in bounds:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _published(program: Program, node: range) -> list[tuple[int, int]]:
    return [bounds for step in program for bounds in _near_slices(step, node)]


def _covering(
    views: dict[tuple[int, int, int], torch.Tensor], index: int, start: int, stop: int
) -> torch.Tensor:
    """The part [start, stop) of the published slice that holds it."""
    for (step, first, last), view in views.items():
        if step == index and first <= start and stop <= last:
            return view[start - first : stop - first]
    raise AssertionError("a combine waits for a slice that nobody sends")


def _add(tensors: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """``out`` becomes the sum of ``tensors``, first to last, in float32 for 16-bit types."""
    if len(tensors) == 1:
        out.copy_(tensors[0])
    elif out.dtype in (torch.bfloat16, torch.float16):
        total = tensors[0].float()
        for tensor in tensors[1:]:
            total.add_(tensor)
        out.copy_(total)
    elif len(tensors) == 2:
        torch.add(tensors[0], tensors[1], out=out)
    else:
        total = torch.add(tensors[0], tensors[1])
        for tensor in tensors[2:]:
            total.add_(tensor)
        out.copy_(total)


def _mismatch(low: list[int], high: list[int]) -> MismatchError:
    (count, dtype, algorithm), (other_count, other_dtype, other_algorithm) = low, high
    if count != other_count:
        what = f"{count} and {other_count} elements"
    elif dtype != other_dtype:
        what = f"{_dtype_name(dtype)} and {_dtype_name(other_dtype)}"
    else:
        what = f"algorithms {_ALGORITHM_NAMES[algorithm]} and {_ALGORITHM_NAMES[other_algorithm]}"
    return MismatchError(
        f"all_reduce: the ranks of the group passed {what}; every rank must pass the same "
        "shape, dtype and algorithm"
    )


def _dtype_name(code: int) -> str:
    return str(DTYPES[code]).removeprefix("torch.")
