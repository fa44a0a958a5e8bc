"""What recording costs: decode steps with and without the recorder in turn, on two CPU ranks.

python benchmarks/recorder_overhead.py [--steps 400] [--output benchmarks/results/recorder_overhead.json]
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
from typing import TYPE_CHECKING

from weft import __version__
from weft.launch.elastic import Launch, run_ranks
from weft.launch.environment import is_launched

if TYPE_CHECKING:
    from weft.engine.llm import LLM

PROMPT = list(range(1, 33))


def measure(steps: int) -> dict[str, object] | None:
    """Times of single decode steps, every second one recorded; None on ranks but the first."""
    from weft.engine.llm import LLM
    from weft.engine.request import SamplingParams
    from weft.vocabulary.layout import Layout

    length = len(PROMPT) + 2 * steps + 16
    with LLM("embedded", Layout(tp=2), device="cpu", cache_tokens=length) as llm:
        sampling = SamplingParams(max_tokens=2 * steps + 8, ignore_eos=True)
        llm.engine.add(0, PROMPT, sampling)
        for _ in range(8):
            llm.engine.step()
        plain, recorded = [], []
        for _ in range(steps):
            plain.append(step_s(llm))
            with llm.recording() as recorder:
                recorded.append(step_s(llm))
        while llm.engine.has_work:
            llm.engine.step()
        if llm.groups.rank:
            return None
    ratios = [a / b for a, b in zip(recorded, plain, strict=True)]
    return {
        "calls_per_step": len(recorder.calls) / len(recorder.steps),
        "step_ms": {
            "plain": round(statistics.median(plain) * 1e3, 3),
            "recorded": round(statistics.median(recorded) * 1e3, 3),
        },
        "ratio": {
            "of_medians": round(statistics.median(recorded) / statistics.median(plain), 4),
            "median_of_pairs": round(statistics.median(ratios), 4),
        },
    }


def step_s(llm: LLM) -> float:
    started = time.perf_counter()
    llm.engine.step()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not is_launched():
        run_ranks([__file__, *sys.argv[1:]], Launch(ranks_per_node=2))
        return
    from weft.launch.worker import worker

    with worker():
        measured = measure(options.steps)
        if measured is None:
            return
        import torch

        result = {
            "what": "recorded over unrecorded decode steps in turn, embedded model, tp2 on the CPU",
            "command": f"python benchmarks/recorder_overhead.py --steps {options.steps}",
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
