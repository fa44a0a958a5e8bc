"""Dry runs of large models on many ranks: seconds and memory of the whole command.

    python benchmarks/dry_run_scale.py [--output benchmarks/results/dry_run_scale.json]

Limits: 10 s of one core and 1.5 GB each; ``seconds`` is the wall's time, which a busy machine
stretches, ``processor_seconds`` the command's own. Exits with 1 where a limit is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from weft import __version__

CASES = (
    "deepseek-v3 --tp 8",
    "deepseek-v3 --dp 16 --ep 16",
    "deepseek-v3 --tp 8 --pp 2",
    "kimi-k2 --tp 64",
    "kimi-k2 --tp 8 --dp 8 --ep 64",
    "deepseek-v3 --tp 8 --dcp 8",
    "deepseek-v3 --tp 8 --speculate mtp:2 --prefill-layout tp4xpp2",
)
MOST_S, MOST_GB = 10.0, 1.5


def measured(case: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "weft",
        "trace",
        *case.split(),
        "--dry-run",
        "--format",
        "json",
    ]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    document = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, case
    return {
        "command": f"weft trace {case} --dry-run",
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "memory_gb": round(usage.ru_maxrss * 1024 / 1e9, 3),
        "rows": len(document["collectives"]),
        "calls": sum(row["count"] for row in document["collectives"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = [measured(case) for case in CASES]
    for row in rows:
        print(
            f"{row['seconds']:6.2f} s {row['memory_gb']:6.3f} GB {row['calls']:8d}  {row['command']}"
        )
    if arguments.output is not None:
        about = {
            "weft": __version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
        document = {
            "about": about,
            "limits": {"seconds": MOST_S, "memory_gb": MOST_GB},
            "rows": rows,
        }
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    return any(row["processor_seconds"] > MOST_S or row["memory_gb"] > MOST_GB for row in rows)


if __name__ == "__main__":
    sys.exit(main())
