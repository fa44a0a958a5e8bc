"""The layout behind a set of rank traces, from their process groups and operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from weft.errors import LayoutError
from weft.importer.rank_trace import Call, RankTrace
from weft.vocabulary.layout import GroupKind, Layout

_BETWEEN_STAGES = ("send", "recv")
_WITHIN_STAGE = ("all_reduce", "reduce_scatter", "all_gather", "gather")


def infer_layout(traces: Sequence[RankTrace]) -> Layout:
    """Degrees of tensor, pipeline and data parallelism of the run.

    vLLM makes its groups in a fixed order (world, tensor, ..., each with a twin for
    the host), which tells the tensor-parallel degree. Elsewhere the sizes of the
    groups that all-reduce and that send tell the degrees.
    """
    world = max([len(traces), *(max(t.world_size or 0, (t.rank or 0) + 1) for t in traces)])
    calls = [call for trace in traces for call in trace.calls]
    sends = any(call.operation in _BETWEEN_STAGES and call.source != "gloo" for call in calls)
    sends |= any(call.group_description == "pp_broadcast" for call in calls)
    tp = _tp_by_group_order(traces) or _tp_by_operations(calls, world, sends)
    world = max(world, tp)
    if world == 1 and calls:
        raise LayoutError(
            "the traces do not say how many ranks took part; give the layout, e.g. `layout` tp2"
        )
    if world % tp:
        raise LayoutError(
            f"the traces name {world} ranks and tensor-parallel groups of {tp}: "
            "give the layout with `layout`"
        )
    rest = world // tp
    return Layout(tp=tp, pp=rest) if sends else Layout(tp=tp, dp=rest)


def _tp_by_group_order(traces: Sequence[RankTrace]) -> int | None:
    for trace in traces:
        if not (trace.steps and trace.steps[0].label.family == "vllm"):
            return None
        groups = [group for group in trace.groups if group.description == "undefined"]
        if len(groups) >= 6 and groups[0].ranks == groups[1].ranks:
            return max(len(groups[2].ranks), 1)
    return None


def _tp_by_operations(calls: Iterable[Call], world: int, sends: bool) -> int:
    sizes = [
        size
        for call in calls
        if call.operation in _WITHIN_STAGE and (size := _group_size(call)) is not None
    ]
    if sizes:
        return max(set(sizes), key=sizes.count)
    within = any(call.operation in _WITHIN_STAGE for call in calls)
    return 1 if sends and not within else max(world, 1)


def _group_size(call: Call) -> int | None:
    size = len(call.ranks) if call.ranks else call.group_size
    return size if size and size > 1 else None


def group_of(call: Call, rank: int, layout: Layout) -> tuple[GroupKind, int]:
    """The kind of group that a call used and its size."""
    kinds: list[GroupKind] = ["pp", "tp"] if _crosses_stages(call) else ["tp", "pp"]
    for kind in [*kinds, "dp", "ep"]:
        ranks = group_ranks(layout, kind, rank)
        if len(ranks) > 1 and (call.ranks is None or set(call.ranks) == set(ranks)):
            return kind, len(ranks)
    size = len(call.ranks) if call.ranks else call.group_size
    return "world", size or layout.world_size


@lru_cache(maxsize=4096)
def group_ranks(layout: Layout, kind: GroupKind, rank: int) -> tuple[int, ...]:
    """Layout.group_of, once for each rank and kind: every call of a trace asks."""
    return layout.group_of(kind, rank)


def _crosses_stages(call: Call) -> bool:
    return call.operation in ("send", "recv", "broadcast")
