"""Decode of two source trees on GPUs, in turn: what a change costs or gains.

Run: python benchmarks/decode_regression.py --old OLD/src --new src --output FILE \
         llama-3.1-8b:1:1x128,32x1024 llama-3.1-8b:4:1x128,32x1024        (model:tp:cases)
Both trees run the public command with its defaults (``weft bench decode``), ``--rounds`` times
in turn; ratios are of the least TPOT of each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

Times = dict[tuple[int, int], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", nargs="+")
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--each-s", type=float, default=120)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rows = [row for job in options.jobs for row in compare(job, options)]
    options.output.write_text(json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1))


def compare(job: str, options: argparse.Namespace) -> list[dict[str, object]]:
    model, tp, cases = job.split(":")
    times: dict[str, Times] = {"old": {}, "new": {}}
    for turn in range(options.rounds):
        for name in ("old", "new") if turn % 2 == 0 else ("new", "old"):
            tree = getattr(options, name)
            for row in decode(tree, model, tp, cases.split(","), options.each_s):
                key = (row["batch"], row["prompt_tokens"])
                times[name].setdefault(key, []).append(row["tpot_ms"])
    rows = []
    for (batch, prompt), new in sorted(times["new"].items()):
        old = times["old"].get((batch, prompt), [float("nan")])
        ratio = min(new) / min(old)
        print(
            f"{model} tp{tp} {batch}x{prompt}: new/old {ratio:.4f}  new {new}  old {old}",
            flush=True,
        )
        rows.append(
            {"model": model, "tp": int(tp), "batch": batch, "prompt_tokens": prompt}
            | {"ratio": ratio, "new_tpot_ms": new, "old_tpot_ms": old}
        )
    return rows


def decode(
    tree: Path, model: str, tp: str, cases: list[str], limit: float
) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "decode.json"
        command = [sys.executable, "-m", "weft", "bench", "decode", model, "--tp", tp]
        command += [part for case in cases for part in ("--case", case)] + ["-o", str(result)]
        environment = os.environ | {
            "PYTHONPATH": f"{tree.absolute()}:{os.environ.get('PYTHONPATH', '')}"
        }
        try:
            done = subprocess.run(
                command, env=environment, timeout=limit, check=False, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            print(f"{tree}: stopped after {limit:.0f} s", flush=True)
            return []
        if not result.is_file():
            print(f"{tree}: exit {done.returncode}\n{done.stderr[-1500:]}", flush=True)
            return []
        rows: list[dict[str, float]] = json.loads(result.read_text())["rows"]
        return rows


if __name__ == "__main__":
    main()
