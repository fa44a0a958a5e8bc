"""torch's execution traces (ExecutionTraceObserver, the input of Chakra) as events, and beside a profiler's.

They record every operator with its inputs' shapes, and every call of torch.distributed with its
process group and the sizes of both sides; they have no times and no kernels. An event's "time"
here is its number in the order of execution, and it lasts until its last child.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from weft.errors import FileFormatError
from weft.importer.calls import MOST_RANKS
from weft.importer.events import Event
from weft.importer.inflate import TraceBytes
from weft.importer.rank_trace import RankTrace, TracedCall

_SCHEMA: Final = re.compile(rb'\s*\{\s*"schema"\s*:\s*"\d+\.\d+\.\d+')
_ELEMENT: Final = re.compile(r"Tensor\(([^)]+)\)")
_GROUPS: Final = "## process_group:init ##"
_RECORD: Final = "record_param_comms"
_COMPLETED: Final = (
    "dtype", "input_shape", "output_shape", "tensors", "output_elements", "group_name",
    "group_description", "ranks", "group_size", "peer",
)  # fmt: skip


class _Values(msgspec.Struct):
    values: list[Any] = []
    shapes: list[Any] = []
    types: list[str] = []


class _Node(msgspec.Struct):
    """One operator; traces before Chakra's format have its fields side by side."""

    id: int
    name: str
    ctrl_deps: int = 0
    parent: int = 0
    inputs: Any = None
    outputs: Any = None
    attrs: list[dict[str, Any]] = []
    rf_id: int | None = None
    tid: int = 0
    input_shapes: Any = None
    input_types: Any = None
    output_shapes: Any = None

    def attribute(self, name: str) -> Any:
        return next((a.get("value") for a in self.attrs if a.get("name") == name), None)

    @property
    def before(self) -> _Values:
        return self._side(self.inputs, self.input_shapes, self.input_types)

    @property
    def after(self) -> _Values:
        return self._side(self.outputs, self.output_shapes, [])

    def _side(self, values: Any, shapes: Any, types: Any) -> _Values:
        flat = {"values": values or [], "shapes": shapes or [], "types": types or []}
        return msgspec.convert(values if isinstance(values, dict) else flat, _Values)


class _Group(msgspec.Struct):
    """A process group; no ranks where it has all of them."""

    pg_name: str = ""
    pg_desc: str = ""
    backend_config: str = ""
    ranks: list[int] = []
    group_size: Annotated[int, msgspec.Meta(ge=0, le=MOST_RANKS)] = 0


class _Document(msgspec.Struct):
    nodes: list[_Node]


def is_execution_trace(path: Path) -> bool:
    """Whether a file begins like one; it may be packed."""
    try:
        return bool(_SCHEMA.match(next(TraceBytes(path).pieces(), b"")[:256]))
    except FileFormatError:
        return False


class ExecutionTraceReader:
    """One pass over an execution trace, with the interface of ``reader.TraceReader``."""

    truncated = False
    num_damaged = 0

    def __init__(self, path: Path, on_bytes: Callable[[int], None] | None = None) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self._bytes = TraceBytes(path, on_bytes)

    def batches(self) -> Iterator[list[Event]]:
        """Yield the events. Raises FileFormatError where the file breaks off or is none."""
        try:
            text = b"".join(self._bytes.pieces())
            nodes = sorted(msgspec.json.decode(text, type=_Document).nodes, key=lambda n: n.id)
            ends = _ends(nodes)
            events = [_event(node, ends[node.id]) for node in nodes]
            self.metadata["distributedInfo"] = _distributed(nodes)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            raise FileFormatError(
                f"{self.path}: an execution trace that cannot be read ({error}); "
                "give the whole file that ExecutionTraceObserver wrote"
            ) from None
        yield events


def _ends(nodes: Sequence[_Node]) -> dict[int, float]:
    """Where each node ends: with its last descendant. Children have larger ids."""
    ends = {node.id: node.id + 0.5 for node in nodes}
    for node in reversed(nodes):
        parent = node.ctrl_deps or node.parent
        if parent in ends and parent < node.id:
            ends[parent] = max(ends[parent], ends[node.id] + 0.1)
    return ends


def _event(node: _Node, end: float) -> Event:
    is_operator = node.name == _RECORD or "::" in node.name
    args = {
        "Record function id": node.rf_id or node.attribute("rf_id"),
        "Input Dims": node.before.shapes,
        "Input type": [_element(kind) for kind in node.before.types],
    }
    return Event(
        ph="X",
        cat="cpu_op" if is_operator else "user_annotation",
        name=node.name,
        tid=msgspec.Raw(str(node.attribute("tid") or node.tid).encode()),
        ts=float(node.id),
        dur=end - node.id,
        args=msgspec.Raw(
            msgspec.json.encode(args | (_record(node) if node.name == _RECORD else {}))
        ),
    )


def _element(kind: str) -> str:
    match = _ELEMENT.search(kind)
    return match[1] if match else ""


def _record(node: _Node) -> dict[str, Any]:
    """What a profiler's record of the same call would say."""
    values, types = node.before.values, node.before.types
    named = (n for n, (kind, _) in enumerate(zip(types, values, strict=False)) if kind == "String")
    place = next(named, None)
    group = values[place - 2] if place is not None and place >= 2 else None
    pair = group if isinstance(group, list) and len(group) == 2 else [group, None]
    numbers = [value for value in values[(place or 0) + 1 :] if isinstance(value, int)]
    start, stride, size = [None, None, None, *numbers][-3:]
    return {
        "Collective name": None if place is None else values[place],
        "Out msg nelems": node.attribute("out_msg_nelems") or _elements(node.after.shapes),
        "Process Group Name": str(pair[0]),
        "Process Group Description": pair[1],
        "Group size": size,
        "Global rank start": start,
        "Global rank stride": stride,
        "Process Group Ranks": "..." if start is not None else None,
    }


def _elements(shapes: Any) -> int | None:
    """Elements of all tensors among nested lists of shapes."""
    if not isinstance(shapes, list) or not shapes:
        return None
    if all(isinstance(size, int) for size in shapes):
        return prod(shapes)
    return sum(_elements(shape) or 0 for shape in shapes) or None


def _distributed(nodes: Iterable[_Node]) -> dict[str, Any]:
    """Groups, world size and rank, as far as the nodes tell them."""
    groups: list[_Group] = []
    rank = None
    for node in nodes:
        values = node.before.values
        if node.name == _GROUPS and values:
            groups += msgspec.json.decode(values[0], type=list[_Group])
        elif node.name == _RECORD and rank is None and node.attribute("pg_desc") == "default_pg":
            rank = next((values[n - 1] for n, v in enumerate(values) if isinstance(v, str)), None)
    whole = next((group for group in groups if group.pg_name == "0"), _Group())
    config = [
        {
            "pg_desc": group.pg_desc,
            "ranks": group.ranks or list(range(group.group_size)),
        }
        for group in groups
    ]
    backend = next((name for name in ("nccl", "gloo") if name in whole.backend_config), None)
    size = whole.group_size or None
    return {"pg_config": config, "world_size": size, "rank": rank, "backend": backend}


def complete(timed: RankTrace, untimed: RankTrace) -> None:
    """Add to a profiler's trace what the execution trace of the same run knows more of each call.

    Calls are matched by the id of their operator, else in order of each operation. Raises
    FileFormatError where neither fits.
    """
    for call, other in _matched(timed, untimed):
        for name in _COMPLETED:
            if getattr(call, name) is None:
                setattr(call, name, getattr(other, name))
    timed.groups = timed.groups or untimed.groups
    timed.world_size = timed.world_size or untimed.world_size


def _matched(timed: RankTrace, untimed: RankTrace) -> list[tuple[TracedCall, TracedCall]]:
    by_id = {c.function_id: c for c in untimed.calls if c.function_id is not None}
    pairs = [(call, by_id[call.function_id]) for call in timed.calls if call.function_id in by_id]
    if pairs and all(map(_fit, pairs)):
        return pairs
    by_operation = attrgetter("operation")
    ours, theirs = (sorted(trace.calls, key=by_operation) for trace in (timed, untimed))
    pairs = list(zip(ours, theirs, strict=False))
    if len(ours) != len(theirs) or not all(map(_fit, pairs)):
        raise FileFormatError(
            f"{untimed.path}: an execution trace of another run than {timed.path} "
            "(their calls differ); record both with one torch.profiler.profile"
        )
    return pairs


def _fit(pair: tuple[TracedCall, TracedCall]) -> bool:
    """Whether two calls may be the same one, by their operation and size."""
    ours, theirs = (
        call.input_elements or (call.input_shape and prod(call.input_shape)) for call in pair
    )
    return pair[0].operation == pair[1].operation and (not ours or not theirs or ours == theirs)
