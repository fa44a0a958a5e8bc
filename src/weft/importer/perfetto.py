"""An import as a Chrome-format trace that Perfetto opens: one process a rank, calls with sizes."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from weft.importer.imported import ImportedTrace
from weft.importer.rank_trace import RankTrace
from weft.vocabulary.files import write_file

_LANES: Final = {"steps": 1, "communication": 2, "compute": 3, "host communication": 4}
_ARGUMENTS: Final = (
    "source", "input_shape", "tensors", "input_elements", "dtype", "step", "wait_us",
    "transfer_us", "overlapped_us",
)  # fmt: skip


def write_perfetto(imported: ImportedTrace, path: Path) -> None:
    """Write the trace to ``path``, gzip-packed where the name ends in .gz.

    All ranks are on the clock of the lowest one (see clocks.py).
    """
    document = {"displayTimeUnit": "ms", "traceEvents": list(_events(imported))}
    content = msgspec.json.encode(document)
    write_file(path, gzip.compress(content, 6) if path.suffix == ".gz" else content)


def _events(imported: ImportedTrace) -> Iterator[dict[str, Any]]:
    clocks = {clock.rank: clock for clock in imported.clocks}
    layout = imported.schedule.layout
    for rank, trace in imported.traces.items():
        yield _metadata("process_name", rank, 0, f"rank {rank} (stage {layout.stage_of(rank)})")
        for name, lane in _LANES.items():
            yield _metadata("thread_name", rank, lane, name)
        for event in _of_rank(trace, imported, rank):
            event["pid"] = rank
            event["ts"] = round(
                event["ts"] - (clocks[rank].at(event["ts"]) if rank in clocks else 0.0), 3
            )
            yield event


def _of_rank(trace: RankTrace, imported: ImportedTrace, rank: int) -> Iterator[dict[str, Any]]:
    for step in trace.steps:
        label = step.label
        arguments = {"tokens": label.num_tokens, "sequences": label.num_sequences}
        name = label.phase if not label.is_empty else "empty"
        yield _span(name, "steps", step.start_us, step.end_us - step.start_us, arguments)
    for call in trace.calls:
        kind, size = imported.run.group_of(call, rank)
        lane = "communication" if call.on_device or not trace.on_device else "host communication"
        values = {name: getattr(call, name) for name in _ARGUMENTS} | {"group": f"{kind}{size}"}
        arguments = {name: value for name, value in values.items() if value is not None}
        yield _span(call.operation, lane, call.start_us, call.duration_us, arguments)
    for start, end in zip(trace.compute_starts, trace.compute_ends, strict=True):
        yield _span("compute", "compute", start, end - start, {})


def _span(
    name: str, lane: str, start_us: float, duration_us: float, arguments: dict[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": lane,
        "tid": _LANES[lane],
        "ts": start_us,
        "dur": round(duration_us, 3),
        "args": arguments,
    }


def _metadata(name: str, rank: int, lane: int, value: str) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": rank, "tid": lane, "ts": 0, "args": {"name": value}}
