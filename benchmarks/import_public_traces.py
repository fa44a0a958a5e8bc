"""Import every trace below the given folders and hold the rows against counts of our own.

Usage: python benchmarks/import_public_traces.py FOLDER… [--output FILE]

Made for the traces that others keep as test data (facebookresearch/HolisticTraceAnalysis
tests/data, AMD-AGI/TraceLens tests/traces: clone them and name the folders); works on any. The
counts here are made with json alone, from the raw events: nothing of weft's reader, table of
kernels or joining of layers is used. Each file is either imported (operations, calls, elements
and group sizes as counted here) or refused by one line. Leaves with 1 where one is neither.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weft.errors import WeftError
from weft.importer.importing import import_traces

SPELLINGS = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "allgatherbase": "all_gather",
    "reducescatter": "reduce_scatter",
    "reducescatterbase": "reduce_scatter",
    "alltoall": "all_to_all",
    "alltoallbase": "all_to_all",
    "alltoallv": "all_to_all",
    "broadcast": "broadcast",
    "send": "send",
    "recv": "recv",
    "reduce": "reduce",
    "gather": "gather",
    "scatter": "scatter",
}
DEVICE = re.compile(
    r"nccl|rccl|cross_device_reduce|multimem_all_reduce|deep_ep|nvshmem", re.IGNORECASE
)
MOST_BUSBW = 4000.0


def raw_events(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """The events and the metadata of a trace file; None for what is no trace."""
    content = path.read_bytes()
    try:
        text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        document = json.loads(text)
    except (OSError, ValueError, EOFError):
        return None
    if isinstance(document, dict):
        events = document.get("traceEvents")
        return (events, document) if isinstance(events, list) else None
    return None


def operation(name: str) -> str | None:
    return SPELLINGS.get(re.sub(r"[^a-z]", "", name.lower()))


def counted(events: list[dict[str, Any]]) -> Counter[tuple[str, int | None, int | None]]:
    """Calls by (operation, input elements, group size), from one layer of the trace alone."""
    spans = [e for e in events if isinstance(e, dict) and e.get("ph") == "X"]
    named = [
        e
        for e in spans
        if e.get("name") == "record_param_comms" and _args(e).get("Collective name")
    ]
    found: Counter[tuple[str, int | None, int | None]] = Counter()
    for event in named:
        args = _args(event)
        op = operation(str(args["Collective name"]))
        if op:
            found[op, args.get("In msg nelems"), args.get("Group size")] += 1
    for event in spans:
        name, dims = str(event.get("name")), _args(event).get("Input Dims")
        match = re.match(r"(\w+):(\w+)$", name)
        is_backend = (
            match and event.get("cat") == "user_annotation" and (not named or match[1] == "gloo")
        )
        if match and is_backend and operation(match[2]):
            found[operation(match[2]) or "", _elements(dims), None] += 1
        elif event.get("cat") == "cpu_op" and re.match(r"_C::shm_all", name):
            found[
                operation(name[len("_C::shm_") :]) or "", _elements((dims or [[], []])[1:]), None
            ] += 1
        elif name.startswith(("symm_mem::multimem_all_reduce", "symm_mem::one_shot_all_reduce")):
            found["all_reduce", _elements(dims), None] += 1
    return found


def _args(event: dict[str, Any]) -> dict[str, Any]:
    args = event.get("args")
    return args if isinstance(args, dict) else {}


def _elements(dims: Any) -> int | None:
    if not dims or not isinstance(dims[0], list) or not dims[0]:
        return None
    total = 1
    for size in dims[0]:
        if not isinstance(size, int):
            return None
        total *= size
    return total


def imported_counts(result: Any) -> Counter[tuple[str, int | None, int | None]]:
    found: Counter[tuple[str, int | None, int | None]] = Counter()
    for measured in result.rows:
        row = measured.row
        elements = None if row.input_shape is None else _product(row.input_shape)
        found[row.op, elements, row.group_size] += row.count
    return found


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def problems(path: Path, events: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the import of one trace."""
    expected = counted(events)
    try:
        result = import_traces([path])
    except WeftError as error:
        if expected:
            yield f"refused although it has {sum(expected.values())} collectives: {error}"
        elif "\n" in str(error):
            yield "refused by more than one line"
        return
    actual = imported_counts(result)
    for what, position in (("operations", (0,)), ("sizes", (0, 1))):
        ours, theirs = _by(expected, position), _by(actual, position)
        early = _kernels(events) if position == (0,) else Counter[Any]()
        if any(
            theirs[key] not in (count, early[key[0]])
            for key, count in ours.items()
            if None not in key
        ):
            yield f"{what}: counted {dict(ours)}, imported {dict(theirs)}"
    yield from _claims(result, {size for _, _, size in expected if size})
    kernels = sum(
        e.get("cat") == "kernel" and bool(DEVICE.search(str(e.get("name")))) for e in events
    )
    if kernels and not (actual or result.unexplained):
        yield f"{kernels} kernels of communication are not mentioned"


def _kernels(events: list[dict[str, Any]]) -> Counter[str]:
    """Kernels by the operation in their name: some were launched before the recording began."""
    found: Counter[str] = Counter()
    for event in events:
        match = re.match(r"nccl\w*[Kk]ernel_([A-Za-z]+)", str(event.get("name")))
        if match and event.get("cat") == "kernel" and operation(match[1]):
            found[operation(match[1]) or ""] += 1
    return found


def _claims(result: Any, groups: set[int]) -> Iterator[str]:
    seen = {measured.row.group_size for measured in result.rows}
    if groups - seen:
        yield f"groups: counted {groups}, imported {seen}"
    for measured in result.rows:
        if (measured.busbw_gb_s or 0) > MOST_BUSBW:
            yield f"{measured.row.op}: {measured.busbw_gb_s} GB/s"
    if result.conformance.conforms is not None:
        yield f"judged without a model: {result.conformance.reason}"


def _by(counts: Counter[Any], positions: tuple[int, ...]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for key, count in counts.items():
        found[tuple(key[position] for position in positions)] += count
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    for folder in arguments.folders:
        files = sorted(p for p in folder.rglob("*") if p.name.endswith((".json", ".json.gz")))
        results += [_check(path, folder) for path in files]
    wrong = [entry for entry in results if entry["problems"]]
    outcomes = Counter(entry["outcome"] for entry in results)
    summary = f"{len(results)} files: {dict(outcomes)}; {len(wrong)} wrong"
    print(summary)
    if arguments.output:
        document = {"summary": summary, "files": results}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(wrong))


def _check(path: Path, folder: Path) -> dict[str, Any]:
    raw = raw_events(path)
    name = str(path.relative_to(folder))
    if raw is None:
        try:
            import_traces([path])
        except WeftError as error:
            found = ["refused by more than one line"] if "\n" in str(error) else []
            return {"file": name, "outcome": "no trace", "problems": found}
        return {"file": name, "outcome": "no trace", "problems": ["imported, and is no trace"]}
    found = list(problems(path, raw[0]))
    outcome = "imported" if counted(raw[0]) else "no collectives"
    for problem in found:
        print(f"{name}: {problem}", file=sys.stderr)
    return {
        "file": name,
        "outcome": outcome,
        "collectives": sum(counted(raw[0]).values()),
        "problems": found,
    }


if __name__ == "__main__":
    main()
