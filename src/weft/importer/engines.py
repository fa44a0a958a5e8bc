"""Which engine wrote a trace, and by which conventions it moves its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from weft.errors import UserError
from weft.importer.rank_trace import RankTrace
from weft.vocabulary.conventions import ENGINES, Conventions
from weft.vocabulary.layout import Layout

ENGINE_CHOICES: Final = ("auto", *ENGINES, "torch")


def engine_of(traces: Sequence[RankTrace], choice: str = "auto") -> str:
    """The engine's name: the user's choice, or what labels and operators say.

    ``torch`` is a job of plain torch.distributed: it has no schedule to be held against.
    """
    if choice not in ENGINE_CHOICES:
        raise UserError(f"`engine` {choice}: unknown; choose one of {', '.join(ENGINE_CHOICES)}")
    if choice not in ("auto", "vllm"):
        return choice
    family = _family(traces) if choice == "auto" else "vllm"
    if family == "vllm" and not any(trace.on_device for trace in traces):
        return "vllm-cpu"
    return family


def _family(traces: Sequence[RankTrace]) -> str:
    for trace in traces:
        if trace.steps:
            return trace.steps[0].label.family
        if trace.engine_version or any(c.source == "shared-memory" for c in trace.calls):
            return "vllm"
        if any(call.name.startswith("trtllm::") for call in trace.calls):
            return "trtllm"
        if any(call.name.startswith(("sglang::", "sgl_kernel::")) for call in trace.calls):
            return "sglang"
    return "torch"


def conventions_of(
    engine: str, traces: Sequence[RankTrace], layout: Layout
) -> tuple[Conventions | None, list[str]]:
    """The engine's conventions, with what its configuration changes, and notes on that.

    Asynchronous scheduling decides whether and how sampled ids cross the pipeline
    group; it is a setting of the engine that only the broadcasts themselves show.
    """
    conventions = ENGINES.get(engine)
    if conventions is None or layout.pp == 1 or engine not in ("vllm", "vllm-cpu"):
        return conventions, []
    dtypes = {
        call.dtype
        for trace in traces
        for call in trace.calls
        if call.operation == "broadcast" and call.step is not None
    }
    if not dtypes and conventions.sampled_ids != "host":
        note = "no sampled ids cross the pipeline group: asynchronous scheduling is off"
        return replace(conventions, sampled_ids="host"), [note]
    if dtypes == {"int32"}:
        note = "sampled ids cross the pipeline group as one int32 column (first model runner)"
        return replace(conventions, sampled_ids="broadcast_int32"), [note]
    return conventions, []
