"""What a rank did as a trace file: for ``weft import``, Perfetto and chrome://tracing.

On GPUs it is torch's profiler that writes: kernels, also of replayed graphs, and the steps by
their labels. On a CPU a call ends when its bytes have arrived, so that the recorder has the times;
weft's own all-reduce moves them in shared memory, where torch's profiler would not see it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import torch

from weft.comm.groups import ProcessGroups
from weft.comm.recorder import Call, Recorder
from weft.vocabulary.files import write_file

_SCALAR_NAMES: Final = {
    "bfloat16": "BFloat16", "float16": "Half", "float32": "Float", "float64": "Double",
    "int64": "Long", "int32": "Int", "uint8": "Byte", "bool": "Bool",
}  # fmt: skip


@contextmanager
def traced(groups: ProcessGroups, folder: Path) -> Iterator[Recorder]:
    """Record what this rank does meanwhile and leave ``weft_rank<N>.pt.trace.json.gz``."""
    path = folder / f"weft_rank{groups.rank}.pt.trace.json.gz"
    path.unlink(missing_ok=True)
    whole = path.with_name(f".{path.name}")  # torch packs by the ending
    if groups.device.type == "cuda":
        with _kernels(whole), groups.recording() as recorder:
            yield recorder
        whole.replace(path)
    else:
        with groups.recording(eager=True) as recorder:
            yield recorder
        write_file(path, gzip.compress(msgspec.json.encode(trace_of(recorder, groups)), 1))


@contextmanager
def _kernels(path: Path) -> Iterator[None]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities, record_shapes=True) as trace:
        yield
        torch.cuda.synchronize()
    trace.export_chrome_trace(str(path))


def trace_of(recorder: Recorder, groups: ProcessGroups) -> dict[str, Any]:
    """The recording as a Kineto trace; times in microseconds of the machine's own clock."""
    steps = [
        _event("user_annotation", step.label, step.start_s, step.end_s) for step in recorder.steps
    ]
    calls = [
        _event("cpu_op", "record_param_comms", call.start_s, call.end_s, _arguments(call, groups))
        for call in recorder.calls
        if call.timed
    ]
    return {
        "distributedInfo": {
            "rank": groups.rank,
            "world_size": groups.layout.world_size,
            "backend": "gloo",
        },
        "traceEvents": [*steps, *calls],
    }


def _arguments(call: Call, groups: ProcessGroups) -> dict[str, Any]:
    ranks = groups.layout.group_of(call.group, groups.rank)
    return {
        "Collective name": call.op,
        "Input Dims": [list(call.input_shape)],
        "Output Dims": list(call.output_shape or call.input_shape),
        "Input type": [_SCALAR_NAMES.get(call.dtype, call.dtype)],
        "dtype": _SCALAR_NAMES.get(call.dtype, call.dtype),
        "Process Group Description": call.group,
        "Process Group Ranks": str(list(ranks)),
        "Group size": call.group_size,
    }


def _event(
    category: str, name: str, start_s: float, end_s: float, args: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 0,
        "tid": 0,
        "ts": start_s * 1e6,
        "dur": (end_s - start_s) * 1e6,
        "args": args or {},
    }
