"""Read the JSON of ``weft bench allreduce``: µs by size, who is first, and how far auto is off.

python benchmarks/allreduce_summary.py bench4.json bench2.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from weft.bench.sizes import size_text

TARGETS_US = {  # H200, bf16, captured graphs: design goals
    4: {8: 3.5, 32: 4.0, 128: 5.2, 256: 6.4, 512: 8.2, 1024: 10.8, 2048: 16.0},
    2: {8: 2.8, 32: 3.0, 128: 3.6, 256: 4.4, 512: 5.6, 1024: 7.6, 2048: 11.5},
}
PEERS = ("backend", "nccl_symmetric", "torch_one_shot", "torch_two_shot")


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        if path.is_file() and path.stat().st_size:
            print(f"{path.name}\n{summary(json.loads(path.read_text()))}")
        else:
            print(f"{path.name}: nothing was measured")


def summary(document: dict) -> str:
    rows, machine = document["rows"], document["machine"]
    lines = [f"unavailable: {machine['unavailable']}"] if machine.get("unavailable") else []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        here = [row for row in rows if row["dtype"] == dtype]
        names = list(dict.fromkeys(row["algorithm"] for row in here))
        lines.append(f"{machine['ranks']} ranks, {machine['nodes']} node(s), {dtype}: {names}")
        lines += [line(size, names, here, machine) for size in sorted({r["bytes"] for r in here})]
    wrong = sum(row["wrong"] for row in rows)
    return "\n".join([*lines, f"{len(rows)} rows, {wrong} wrong elements"])


def line(size: int, names: list[str], rows: list[dict], machine: dict) -> str:
    times = {row["algorithm"]: row["median_us"] for row in rows if row["bytes"] == size}
    cells = " ".join(f"{times[n]:8.2f}" if n in times else "       -" for n in names)
    notes = []
    peers = [times[name] for name in PEERS if name in times]
    if "auto" in times and peers:
        notes.append(f"auto/best peer {times['auto'] / min(peers):.2f}")
    if machine["nodes"] == 1 and size % 1024 == 0 and "H200" in machine.get("gpus", ""):
        target = TARGETS_US.get(machine["ranks"], {}).get(size // 1024)
        if target is not None and "auto" in times:
            notes.append(f"target {target} {'met' if times['auto'] <= target else 'MISSED'}")
    if "two_shot" in times and machine["nodes"] > 1:
        between = [time for name, time in times.items() if name.startswith("hierarchical")]
        notes.append(
            f"hierarchy/two_shot {min(between) / times['two_shot']:.2f}" if between else ""
        )
    elif "hierarchical_host" in times:
        notes.append(f"NCCL over TCP/weft {times['backend'] / times['hierarchical_host']:.2f}")
    return f"{size_text(size):>6} {cells}  {' · '.join(notes)}"


if __name__ == "__main__":
    main()
