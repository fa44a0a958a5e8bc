"""Many random loads for the engine on every layout: ``make soak-engine``.

A failing case is shrunk and shown, and ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from engine_cases import write_model
from engine_crew import LAYOUTS, Crew, check_many, references

SHARES = {"1": 0.5, "tp2": 0.18, "pp2": 0.2, "tp2xpp2": 0.12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--layout", choices=LAYOUTS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder))
        alone = references(model)
        for name in options.layout or LAYOUTS:
            count, start = round(options.cases * SHARES[name]), time.monotonic()
            with Crew(model, LAYOUTS[name]) as crew:
                ties = check_many(crew, alone, count)
            spent_s = time.monotonic() - start
            print(f"{name}: {count} cases, {ties} ties, {spent_s:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
