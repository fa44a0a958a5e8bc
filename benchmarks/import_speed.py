"""Time and memory of reading a trace: weft import, plain json.load and HTA in one run.

Usage: python benchmarks/import_speed.py TRACE.json.gz [--events 500000] [--hta PYTHON] [--repeats 3] [--output FILE]

``--events`` repeats the trace's events until there are as many (later, and with ids of their own).
``--hta`` names the interpreter of an environment with HolisticTraceAnalysis; each
measurement is a process of its own, start and imports included.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

PEAK = (
    "import re; print('PEAK', re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
)
WEFT = (
    "import sys; from weft.cli import main; from weft.cli.import_ import import_; "
    "'import' in [c.name for c in main.app.registered_commands] or "
    "main.app.command('import')(import_); main.run(['import', *sys.argv[1:], '--jobs', '1']); "
)
JSON = "import gzip, json, sys; n = json.load(gzip.open(sys.argv[1])); "
HTA = (
    "import sys, logging; logging.disable(); from hta.trace_analysis import TraceAnalysis; "
    "t = TraceAnalysis(trace_files={0: sys.argv[1]}, trace_dir='/'); "
    "print('ROWS', len(t.t.get_trace(0))); "
)


def measure(python: str, code: str, files: list[Path], repeats: int) -> dict[str, Any]:
    """Wall and processor time of whole processes (children too), and the largest one's memory."""
    wall, processor, peaks = [], [], []
    for _ in range(repeats):
        before, start = os.times(), time.perf_counter()
        output = subprocess.run(
            [python, "-c", code + PEAK, *map(str, files)],
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        ).stdout
        wall.append(time.perf_counter() - start)
        after = os.times()
        processor.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
        peaks.append(int(output.rsplit("PEAK", 1)[1]) / 1024)
    return {
        "wall_s_min": round(min(wall), 3),
        "wall_s_median": round(statistics.median(wall), 3),
        "processor_s_min": round(min(processor), 3),
        "peak_mb": round(max(peaks), 1),
    }


def grown(trace: Path, events: int, folder: Path) -> Path:
    """The same run several times over, one after the other."""
    document = json.loads(gzip.decompress(trace.read_bytes()))
    own = [e for e in document["traceEvents"] if e.get("ph") == "X"]
    span = max(e["ts"] + e["dur"] for e in own) - min(e["ts"] for e in own) + 1000
    number = 1
    while len(document["traceEvents"]) < events:
        for event in own[: events - len(document["traceEvents"])]:
            args = event.get("args", {})
            ids = {
                k: args[k] + number * 10_000_000
                for k in ("External id", "correlation")
                if k in args
            }
            later = {"ts": event["ts"] + number * span, "args": args | ids}
            document["traceEvents"].append(event | later)
        number += 1
    path = folder / f"grown_{trace.name}"
    path.write_bytes(gzip.compress(json.dumps(document).encode(), 6))
    return path


def copies(trace: Path, ranks: int, folder: Path) -> list[Path]:
    """The same trace as several ranks: the rank number is rewritten, nothing else."""
    text = gzip.decompress(trace.read_bytes())
    paths = []
    for rank in range(ranks):
        changed = text.replace(b'"rank": 1,', b'"rank": %d,' % rank, 1)
        changed = changed.replace(b'"world_size": 2', b'"world_size": %d' % ranks, 1)
        path = folder / f"rank{rank}.json.gz"
        path.write_bytes(gzip.compress(changed, 6))
        paths.append(path)
    return paths


def many_ranks(trace: Path, ranks: int, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = copies(trace, ranks, Path(folder))
        one_process = WEFT
        return {
            "one_process": measure(sys.executable, one_process, files, repeats),
            "default": measure(sys.executable, WEFT.replace(", '--jobs', '1'", ""), files, repeats),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", type=Path)
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--hta")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/import_speed.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(arguments, Path(folder))
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    trace, repeats = arguments.trace, arguments.repeats
    if arguments.events:
        trace = grown(trace, arguments.events, folder)
    files = [trace]
    result: dict[str, Any] = {
        "command": f"python benchmarks/import_speed.py {arguments.trace.name} --events {arguments.events}",
        "trace": arguments.trace.name,
        "events": arguments.events or "as recorded",
        "packed_bytes": trace.stat().st_size,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "msgspec": version("msgspec"),
        "weft_import": measure(sys.executable, WEFT, files, repeats),
        "json_load": measure(sys.executable, JSON, files, repeats),
    }
    for kind in ("wall_s_min", "processor_s_min"):
        share = result["weft_import"][kind] / result["json_load"][kind]
        result[f"{kind}_to_json_load"] = round(share, 3)
    if arguments.hta:
        result["hta"] = measure(arguments.hta, HTA, files, repeats)
        code = "from importlib.metadata import version; print(version('HolisticTraceAnalysis'))"
        found = subprocess.run(
            [arguments.hta, "-c", code], check=True, capture_output=True, text=True
        )
        result["hta"]["version"] = found.stdout.strip()
    if arguments.ranks:
        result[f"weft_import_{arguments.ranks}_ranks"] = many_ranks(
            trace, arguments.ranks, max(1, repeats - 1)
        )
    return result


if __name__ == "__main__":
    main()
