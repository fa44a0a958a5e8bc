"""``weft bench decode`` for several layouts, one after the other, within a time budget.

Run: python benchmarks/decode_device.py --output FOLDER --budget-s 240 \
         8b-tp1:llama-3.1-8b:1:1:1x128,32x1024 ...   (name:model:tp:pp:cases[:more options])
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--budget-s", type=float, default=240)
    parser.add_argument("--each-s", type=float, default=120)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.budget_s
    for job in arguments.jobs:
        name, model, tp, pp, cases, *more = job.split(":")
        left = min(arguments.each_s, end - time.monotonic())
        if left < 15:
            print(f"--- {name}: no time left", flush=True)
            continue
        command = [sys.executable, "-m", "weft", "bench", "decode", model, "--tp", tp, "--pp", pp]
        for case in cases.split(","):
            command += ["--case", case]
        command += ["--format", "csv", "-o", str(arguments.output / f"{name}.json")]
        command += more[0].split() if more else []
        started = time.monotonic()
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        try:
            subprocess.run(command, env=environment, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            print(f"--- {name}: stopped after {left:.0f} s", flush=True)
        print(f"--- {name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
