"""A long run: ``make adversary`` or ``python tests/adversary --cases N --seed S``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from adversary import cases, machine
from adversary.shapes import ALL


def main() -> None:
    """Run the cases one after another; the first that is wrong ends it."""
    parser = argparse.ArgumentParser(prog="adversary", description=__doc__)
    parser.add_argument("--cases", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument(
        "--schedules", type=int, default=32, help="of each undisturbed set of calls"
    )
    options = parser.parse_args()
    if machine.COMPILER is None:
        raise SystemExit(machine.NO_COMPILER)
    start, done, number, lost, stale, steps = time.monotonic(), 0, options.seed, 0, 0, 0
    while done < options.cases:
        case = cases.any_case(number, ALL, schedules=options.schedules)
        outcome = cases.check(case)
        done, number = done + case.schedules, number + 1
        lost, stale, steps = lost + outcome.lost, stale + outcome.stale_loads, steps + outcome.steps
        if number % 100 == 0:
            print(f"\r{done} cases", end="", file=sys.stderr, flush=True)
    print(
        f"\n{done} cases (schedules of {number - options.seed} sets of calls) from {options.seed} on, no fault, "
        f"{time.monotonic() - start:.0f} s ({time.process_time():.0f} s of processor); "
        f"{lost} ranks lost, {stale} old values read, {steps} times another thread went on"
    )


if __name__ == "__main__":
    main()
