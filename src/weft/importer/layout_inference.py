"""The layout behind a set of rank traces, from their process groups and operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from weft.errors import LayoutError
from weft.importer.rank_trace import RankTrace, TracedCall
from weft.vocabulary.layout import GroupKind, Layout

_BETWEEN_STAGES = ("send", "recv")
_WITHIN_STAGE = ("all_reduce", "reduce_scatter", "all_gather", "gather")
_USUAL_KINDS: Final[tuple[GroupKind, ...]] = ("tp", "pp", "dp", "ep")
_BETWEEN: Final[tuple[GroupKind, ...]] = ("pp", "tp", "dp", "ep")
_KINDS: Final[dict[str, tuple[GroupKind, ...]]] = {
    **dict.fromkeys(("send", "recv", "broadcast"), _BETWEEN),
    **dict.fromkeys(("all_gather", "reduce_scatter"), ("tp", "pp", "ep", "dp")),
    "all_to_all": ("ep", "tp", "pp", "dp"),
}
"""The kinds of group that may carry an operation, the likeliest first."""

_TP_PLACE, _PP_PLACE, _DP_PLACE = 2, 8, 10


@dataclass(frozen=True, kw_only=True)
class RunLayout:
    """The layout of a run, and whether its degrees are known.

    A job of plain torch.distributed has groups but no degrees: its layout has one replica a
    rank, and its calls are over ``world``. ``world_size`` is None where no trace tells it.
    """

    layout: Layout
    is_known: bool
    world_size: int | None

    def group_of(self, call: TracedCall, rank: int) -> tuple[GroupKind, int | None]:
        """The kind of group that a call used and its size, None where nothing tells it."""
        size = call.num_ranks
        if not self.is_known:
            return "world", size or self.world_size
        for kind in _KINDS.get(call.operation, _USUAL_KINDS):
            ranks = group_ranks(self.layout, kind, rank)
            if len(ranks) > 1 and _fits(call, ranks):
                return kind, len(ranks)
        return "world", size or self.layout.world_size


def _fits(call: TracedCall, ranks: tuple[int, ...]) -> bool:
    if call.ranks is not None:
        return set(call.ranks) == set(ranks)
    return call.group_size in (None, len(ranks))


def given_layout(layout: Layout, traces: Sequence[RankTrace]) -> RunLayout:
    """The user's layout. Raises LayoutError where the traces name another number of ranks."""
    named = {trace.world_size for trace in traces if trace.world_size}
    world = max(named, default=0)
    highest = max(trace.rank or 0 for trace in traces)
    if (world and world != layout.world_size) or highest >= layout.world_size:
        raise LayoutError(
            f"`layout` {layout.name}: has {layout.world_size} ranks, but the traces are of "
            f"{world or highest + 1}; give a layout of as many, or none to read it off the traces"
        )
    made = _by_group_order(traces)
    if (
        made
        and made.world_size == layout.world_size
        and made != Layout(tp=layout.tp, pp=layout.pp, dp=layout.dp)
    ):
        raise LayoutError(
            f"`layout` {layout.name}: the engine's process groups in the traces are those of "
            f"{made.name}; give that, or none to read it off the traces"
        )
    return RunLayout(layout=layout, is_known=True, world_size=layout.world_size)


def infer_layout(traces: Sequence[RankTrace], engine: str) -> RunLayout:
    """Degrees of tensor, pipeline and data parallelism of the run.

    vLLM makes its groups in a fixed order (world, tensor, two of context, pipeline, data, each
    with a twin for the host), which tells the degrees. Elsewhere the sizes of the
    groups that all-reduce and that send tell the degrees.
    """
    world = max(len(traces), *(max(t.world_size or 0, (t.rank or 0) + 1) for t in traces))
    calls = [call for trace in traces for call in trace.calls]
    is_told = any(trace.world_size for trace in traces) or len(traces) > 1
    if engine == "torch":
        return RunLayout(
            layout=Layout(dp=world), is_known=False, world_size=world if is_told else None
        )
    sends = any(
        call.operation in _BETWEEN_STAGES and (call.source != "gloo" or trace.backend == "gloo")
        for trace in traces
        for call in trace.calls
    )
    sends |= any(call.group_description == "pp_broadcast" for call in calls)
    if (by_order := _by_group_order(traces)) and by_order.world_size == world:
        return RunLayout(layout=by_order, is_known=True, world_size=world)
    tp = _tp_by_operations(calls, world, sends)
    world = max(world, tp)
    if world == 1 and calls and not is_told:
        return RunLayout(layout=Layout(), is_known=False, world_size=None)
    if world % tp:
        raise LayoutError(
            f"the traces name {world} ranks and tensor-parallel groups of {tp}: "
            "give the layout with `layout`"
        )
    rest = world // tp
    layout = Layout(tp=tp, pp=rest) if sends else Layout(tp=tp, dp=rest)
    return RunLayout(layout=layout, is_known=True, world_size=world)


def _by_group_order(traces: Sequence[RankTrace]) -> Layout | None:
    for trace in traces:
        if not (trace.steps and trace.steps[0].label.family == "vllm"):
            continue
        groups = [group.ranks for group in trace.groups if group.description == "undefined"]
        if len(groups) > _DP_PLACE and groups[0] == groups[1]:
            tp, pp, dp = (max(len(groups[i]), 1) for i in (_TP_PLACE, _PP_PLACE, _DP_PLACE))
            return Layout(tp=tp, pp=pp, dp=dp)
    return None


def _tp_by_operations(calls: Iterable[TracedCall], world: int, sends: bool) -> int:
    sizes = [
        size
        for call in calls
        if call.operation in _WITHIN_STAGE and (size := call.num_ranks or 0) > 1
    ]
    if sizes:
        return max(set(sizes), key=sizes.count)
    within = any(call.operation in _WITHIN_STAGE for call in calls)
    return 1 if sends and not within else max(world, 1)


@lru_cache(maxsize=4096)
def group_ranks(layout: Layout, kind: GroupKind, rank: int) -> tuple[int, ...]:
    """Layout.group_of, once for each rank and kind: every call of a trace asks."""
    return layout.group_of(kind, rank)
