"""Import every trace below the given folders and hold the rows against counts of our own.

Usage: python benchmarks/import_public_traces.py SOURCE… [--output FILE]

Made for the traces that others keep as test data: facebookresearch/HolisticTraceAnalysis,
AMD-AGI/TraceLens, facebookresearch/param and mlcommons/chakra. A source is a folder, or a git
repository (bare or not), of which every file of its newest commit that may be a trace is taken;
files whose content the copy lacks are listed with that reason. The counts here are made with json
alone, from the raw events or nodes: nothing of weft's reader, table of kernels or joining of layers
is used. Each file is either imported (operations, calls, elements and group sizes as counted here)
or refused by one line. Leaves with 1 where one is neither.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import subprocess
import sys
import tempfile
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
NAMES = re.compile(r"\.(json|json\.gz|tar\.gz|tgz)$")
PLACES = re.compile(r"(^|/)(tests?|traces?)/")


def raw_events(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """The events and the metadata of a trace file; None for what is no trace."""
    content = path.read_bytes()
    try:
        text = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        document = json.loads(text)
    except (OSError, ValueError, EOFError):
        return None
    if isinstance(document, dict):
        events = document.get("traceEvents", document.get("nodes"))
        return (events, document) if isinstance(events, list) else None
    return None


def operation(name: str) -> str | None:
    return SPELLINGS.get(re.sub(r"[^a-z]", "", name.lower()))


def counted(events: list[dict[str, Any]]) -> Counter[tuple[str, int | None, int | None]]:
    """Calls by (operation, input elements, group size), from one layer of the trace alone."""
    if any("ph" not in event and "id" in event for event in events[:3]):
        return counted_nodes(events)
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


def counted_nodes(nodes: list[dict[str, Any]]) -> Counter[tuple[str, int | None, int | None]]:
    """The same of an execution trace: its records of torch.distributed, else gloo's own nodes."""
    found: Counter[tuple[str, int | None, int | None]] = Counter()
    records = [node for node in nodes if node["name"] == "record_param_comms"]
    for node in records or [n for n in nodes if n["name"].startswith("gloo:")]:
        inputs = node["inputs"]
        is_flat = isinstance(inputs, list)
        values = inputs if is_flat else inputs["values"]
        shapes = node["input_shapes"] if is_flat else inputs["shapes"]
        name = next((v for v in values if isinstance(v, str)), node["name"].split(":")[-1])
        sizes = [a["value"] for a in node.get("attrs", []) if a["name"] == "pg_size"]
        first = shapes[0] if shapes and isinstance(shapes[0], list) else []
        nested = first[0] if first and isinstance(first[0], list) else first
        op = operation(name)
        if op:
            found[op, _elements([nested]), sizes[0] if sizes else None] += 1
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
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    sources = []
    for source in arguments.sources:
        with tempfile.TemporaryDirectory() as folder:
            commit, absent = (
                taken_out(source, Path(folder)) if is_repository(source) else (None, [])
            )
            place = Path(folder) if commit else source
            files = sorted(p for p in place.rglob("*") if p.name.endswith((".json", ".json.gz")))
            sources.append({"source": source.resolve().parent.name.replace("+", "/") if commit else source.name,
                            "commit": commit})  # fmt: skip
            results += [_check(path, place) for path in files]
            results += [{"file": name, "outcome": "not in the copy of the repository", "problems": []}
                        for name in absent]  # fmt: skip
    wrong = [entry for entry in results if entry["problems"]]
    outcomes = Counter(entry["outcome"] for entry in results)
    summary = f"{len(results)} files: {dict(outcomes)}; {len(wrong)} wrong"
    print(summary)
    if arguments.output:
        document = {"summary": summary, "sources": sources, "files": results}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(wrong))


def is_repository(path: Path) -> bool:
    return (path / "HEAD").is_file() or (path / ".git").exists()


def taken_out(repository: Path, folder: Path) -> tuple[str, list[str]]:
    """Write the files of the newest commit that may be traces; its id, and the files that are lacking."""

    def git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        where = repository / ".git" if (repository / ".git").is_dir() else repository
        command = ["git", f"--git-dir={where}", *arguments]
        return subprocess.run(command, capture_output=True, check=False)

    absent = []
    for name in git("ls-tree", "-r", "--name-only", "HEAD").stdout.decode().splitlines():
        if not (NAMES.search(name) and PLACES.search(name)):
            continue
        content = git("cat-file", "blob", f"HEAD:{name}")
        if content.returncode:
            absent.append(name)
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.stdout)
        if name.endswith(("tar.gz", ".tgz")):
            shutil.unpack_archive(path, path.with_suffix(".d"), "gztar", filter="data")
    return git("rev-parse", "HEAD").stdout.decode().strip(), absent


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
