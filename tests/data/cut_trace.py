"""Cut a small test trace out of a real one: the layers of collectives, labels, some compute.

Usage: python tests/data/cut_trace.py TRACE.json.gz OUT.json.gz [NUM_STEPS]
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from weft.importer.labels import parse_label
from weft.importer.sources import Kind, classify

NOISE_EVENTS = 120
COMPUTE_KERNELS = 300
KEPT_ARGS = (
    "External id", "correlation", "Collective name", "In msg nelems", "Out msg nelems",
    "dtype", "Process Group Name", "Process Group Description", "Process Group Ranks",
    "Group size", "Global rank start", "Global rank stride", "Src Rank", "Dst Rank", "Rank",
    "Input Dims", "Input type", "Concrete Inputs",
)  # fmt: skip


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    num_steps = int(sys.argv[3]) if len(sys.argv) > 3 else None
    trace = json.loads(gzip.decompress(source.read_bytes()))
    end = _end(trace["traceEvents"], num_steps)
    kept, num_noise, num_compute, num_matrices = [], 0, 0, 0
    launched = _launches_of_calls(trace["traceEvents"])
    for event in trace["traceEvents"]:
        kind = classify(event.get("cat", ""), event.get("name", ""))[0]
        if event.get("ts", 0) >= end and event["ph"] != "M":
            continue
        if kind is Kind.LAUNCH and event["args"].get("correlation") not in launched:
            continue
        num_noise += kind is Kind.OTHER
        num_compute += kind is Kind.COMPUTE
        num_matrices += kind is Kind.MATRIX
        if kind is Kind.OTHER and num_noise > NOISE_EVENTS:
            continue
        if kind is Kind.COMPUTE and num_compute > COMPUTE_KERNELS:
            continue
        if kind is Kind.MATRIX and num_matrices > 20:
            continue
        if event["ph"] == "X" and "args" in event:
            args = event["args"]
            event["args"] = {key: args[key] for key in KEPT_ARGS if key in args}
        event["ts"] = event.get("ts", 0)
        kept.append(event)
    trace["traceEvents"] = kept
    trace |= {"host_name": "host", "traceName": "trace.json"}
    trace["deviceProperties"] = trace.get("deviceProperties", [])[:1]
    text = json.dumps(trace, separators=(",", ":")).encode()
    target.write_bytes(gzip.compress(text, 9, mtime=0))
    print(f"{target}: {len(kept)} events, {target.stat().st_size} bytes")


def _launches_of_calls(events: list[dict[str, Any]]) -> set[int]:
    """The correlations of the kernels that communicate."""
    return {
        event["args"]["correlation"]
        for event in events
        if classify(event.get("cat", ""), event.get("name", ""))[0] is Kind.KERNEL
    }


def _end(events: list[dict[str, object]], num_steps: int | None) -> float:
    """Start of the step after the last one kept."""
    labels = [
        event
        for event in events
        if event.get("cat") == "user_annotation" and parse_label(str(event["name"]))
    ]
    starts = sorted(float(e["ts"]) for e in labels if "_0(0)_generation_0(0)" not in str(e["name"]))
    if num_steps is None or num_steps >= len(starts):
        return float("inf")
    return starts[num_steps]


if __name__ == "__main__":
    main()
