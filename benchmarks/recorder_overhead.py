"""What recording costs: TPOT with and without the recorder, interleaved, on two CPU ranks.

python benchmarks/recorder_overhead.py [--repeats 9] [--output benchmarks/results/recorder_overhead.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

from weft import __version__
from weft.launch.elastic import Launch, run_ranks
from weft.launch.environment import is_launched

TOKENS = 48


def measure(repeats: int) -> dict[str, object] | None:
    """Ratios of recorded to unrecorded TPOT, pair by pair; None on ranks but the first."""
    from weft.engine.llm import LLM
    from weft.engine.request import SamplingParams
    from weft.vocabulary.layout import Layout

    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    prompt = [list(range(1, 33))]
    with LLM("embedded", Layout(tp=2), device="cpu") as llm:

        def seconds() -> float:
            started = time.perf_counter()
            llm.generate(prompt, sampling)
            return time.perf_counter() - started

        seconds()
        plain, recorded = [], []
        for _ in range(repeats):
            plain.append(seconds())
            with llm.recording() as recorder:
                recorded.append(seconds())
        if llm.groups.rank:
            return None
    ratios = [a / b for a, b in zip(recorded, plain, strict=True)]
    return {
        "calls_per_step": len(recorder.calls) / len(recorder.steps),
        "step_ms_plain": round(statistics.median(plain) * 1e3 / TOKENS, 3),
        "ratio": {
            "min": round(min(ratios), 4),
            "median": round(statistics.median(ratios), 4),
            "max": round(max(ratios), 4),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not is_launched():
        run_ranks([__file__, *sys.argv[1:]], Launch(ranks_per_node=2))
        return
    from weft.launch.worker import worker

    with worker():
        measured = measure(options.repeats)
        if measured is None:
            return
        import torch

        result = {
            "what": "recorded over unrecorded generation, embedded model, tp2 on the CPU",
            "command": f"python benchmarks/recorder_overhead.py --repeats {options.repeats}",
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "weft": __version__,
            },
        } | measured
        print(json.dumps(result, indent=1))
        if options.output:
            options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
