"""One pass over a trace file: keep the layers of every collective, the steps and compute times."""

from __future__ import annotations

import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from weft.importer.calls import MOST_RANKS, join_layers
from weft.importer.events import Event, decode_args, dtype_name
from weft.importer.execution_trace import ExecutionTraceReader, is_execution_trace
from weft.importer.labels import parse_label
from weft.importer.layers import LAYER_KINDS, Layer, Layers
from weft.importer.nsys import MAGIC, NsysReader, exported
from weft.importer.overlap import merged, set_overlaps
from weft.importer.phases import attribute
from weft.importer.rank_trace import ProcessGroup, RankTrace, TracedStep
from weft.importer.reader import TraceReader
from weft.importer.sources import Kind, Moved, classify
from weft.vocabulary.dtypes import MODEL_DTYPES

_MATRICES_LOOKED_AT: Final = 200
_RANK_IN_FILE_NAME: Final = re.compile(r"(?:^|[^a-z])(?:rank|tp)[-_]?(\d+)", re.IGNORECASE)


class _Collector:
    def __init__(self) -> None:
        self.layers = Layers()
        self.num_events = 0
        self.compute_starts, self.compute_ends = array("d"), array("d")
        self._steps: list[tuple[TracedStep, Any]] = []
        self._device_spans: dict[Any, tuple[float, float]] = {}
        self._dtypes: Counter[str] = Counter()
        self._matrices_seen = 0
        self._kinds: dict[tuple[str, str], tuple[Kind, Moved | None]] = {}

    def add(self, events: list[Event]) -> None:
        kinds = self._kinds
        starts, ends = self.compute_starts, self.compute_ends
        for event in events:
            key = (event.cat, event.name)
            kind = kinds.get(key)
            if kind is None:
                kind = kinds[key] = classify(event.cat, event.name)
            if kind[0] is Kind.OTHER or event.ph != "X":
                continue
            if kind[0] is Kind.COMPUTE:
                starts.append(event.ts)
                ends.append(event.ts + event.dur)
            elif kind[0] is Kind.LAUNCH:
                self._launched(event)
            elif kind[0] is Kind.MATRIX:
                self._see_matrix(event)
            else:
                self._keep(event, *kind)
        self.num_events += len(events)

    def _launched(self, event: Event) -> None:
        correlation = _below(1 << 63, decode_args(event.args).correlation)
        if correlation is not None:
            self.layers.launches.add(correlation, event.ts, bytes(event.tid))

    def _see_matrix(self, event: Event) -> None:
        """The element type of the first matrix products is that of the activations."""
        if self._matrices_seen < _MATRICES_LOOKED_AT:
            self._matrices_seen += 1
            types = decode_args(event.args).types
            names = [dtype_name(kind) for kind in types] if isinstance(types, list) else []
            self._dtypes.update(name for name in names if name in MODEL_DTYPES)

    def activation_dtype(self) -> str | None:
        return max(self._dtypes, key=lambda name: self._dtypes[name], default=None)

    def _keep(self, event: Event, kind: Kind, traffic: Moved | None) -> None:
        args = decode_args(event.args)
        if kind in LAYER_KINDS:
            layer = Layer(
                kind=kind,
                traffic=traffic,
                name=event.name,
                thread=bytes(event.tid),
                start_us=event.ts,
                duration_us=event.dur,
                args=args,
            )
            self.layers.by_kind[kind].append(layer)
        elif kind is Kind.GRAPH_LAUNCH:
            self.layers.graphs[args.correlation] = event.ts
        elif kind is Kind.STEP_ON_DEVICE:
            self._device_spans[args.external_id] = (event.ts, event.ts + event.dur)
        elif label := parse_label(event.name):
            step = TracedStep(label=label, start_us=event.ts, end_us=event.ts + event.dur)
            self._steps.append((step, args.external_id))

    def steps(self) -> list[TracedStep]:
        """In order of time, with the spans of their kernels where the trace links them."""
        self._device_spans.pop(None, None)
        found = []
        for step, identity in sorted(self._steps, key=lambda pair: pair[0].start_us):
            start, end = self._device_spans.get(identity, (None, None))
            found.append(replace(step, device_start_us=start, device_end_us=end))
        return found


def read_rank(path: Path, on_bytes: Callable[[int], None] | None = None) -> RankTrace:
    """Read one trace file, its calls in their steps. Raises FileFormatError where it is no trace."""
    if path.suffix == ".nsys-rep":
        with tempfile.TemporaryDirectory(prefix="weft-nsys-") as folder:
            return replace(read_rank(exported(path, folder), on_bytes), path=path)
    reader = _reader(path)(path, on_bytes)
    collector = _Collector()
    for batch in reader.batches():
        collector.add(batch)
    distributed = _mapping(reader.metadata.get("distributedInfo"))
    version = reader.metadata.get("vllm_version")
    calls, ignored = join_layers(collector.layers)
    starts, ends = merged(collector.compute_starts, collector.compute_ends)
    set_overlaps(calls, starts, ends)
    trace = RankTrace(
        path=path,
        rank=_below(MOST_RANKS, distributed.get("rank"), _rank_in_name(path)),
        world_size=_below(MOST_RANKS + 1, distributed.get("world_size")),
        backend=distributed.get("backend") if isinstance(distributed.get("backend"), str) else None,
        engine_version=f"vllm {version}" if isinstance(version, str) else None,
        num_events=collector.num_events,
        truncated=reader.truncated,
        num_damaged=reader.num_damaged,
        groups=_groups(distributed.get("pg_config")),
        steps=collector.steps(),
        calls=calls,
        compute_starts=starts,
        compute_ends=ends,
        ignored=ignored,
        activation_dtype=collector.activation_dtype(),
        num_graph_launches=len(collector.layers.graphs),
        is_timed=not isinstance(reader, ExecutionTraceReader),
    )
    attribute(trace)
    return trace


def _reader(path: Path) -> type[TraceReader | NsysReader | ExecutionTraceReader]:
    if _is_database(path):
        return NsysReader
    return ExecutionTraceReader if is_execution_trace(path) else TraceReader


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _groups(config: Any) -> tuple[ProcessGroup, ...]:
    entries = [_mapping(entry) for entry in config] if isinstance(config, list) else []
    return tuple(
        ProcessGroup(
            description=str(entry.get("pg_desc", "")),
            ranks=tuple(rank for rank in entry["ranks"] if isinstance(rank, int)),
        )
        for entry in entries
        if isinstance(entry.get("ranks"), list)
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _below(limit: int, value: Any, default: int | None = None) -> int | None:
    """``value`` where it is a whole number from 0 to below ``limit``."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 <= value < limit else default


def _rank_in_name(path: Path) -> int | None:
    match = _RANK_IN_FILE_NAME.search(path.name)
    return _below(MOST_RANKS, int(match[1])) if match else None
