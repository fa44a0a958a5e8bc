"""A long run: ``make adversary`` or ``python tests/adversary --cases N --seed S``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from adversary import cases, machine, programs
from adversary.shapes import ALL


def main() -> None:
    """Run the cases one after another until one is wrong; Ctrl-C says what was run so far."""
    parser = argparse.ArgumentParser(prog="adversary", description=__doc__)
    parser.add_argument("--cases", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument(
        "--schedules", type=int, default=32, help="of each undisturbed set of calls"
    )
    parser.add_argument(
        "--transport", choices=("nvshmem", "tcp"), help="only these kernels, and no programs"
    )
    options = parser.parse_args()
    if machine.COMPILER is None:
        raise SystemExit(machine.NO_COMPILER)
    start, number, done = time.monotonic(), options.seed, Counter[str]()
    with suppress(KeyboardInterrupt):
        while done.total() < options.cases:
            _run(number, options, done)
            number += 1
            if number % 100 == 0:
                print(f"\r{done.total()} cases", end="", file=sys.stderr, flush=True)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(done.items()))
    print(
        f"\n{done.total()} cases ({kinds}; from {options.seed} to {number}), no fault, "
        f"{time.monotonic() - start:.0f} s ({time.process_time():.0f} s of processor)"
    )


def _run(number: int, options: argparse.Namespace, done: Counter[str]) -> None:
    """The schedules of one set of calls of the kernels, and one case of the CPU's programs."""
    shapes = [shape for shape in ALL if shape.nodes > 1 or options.transport is None]
    case = cases.any_case(number, shapes, schedules=options.schedules, transport=options.transport)
    cases.check(case)
    done[f"kernels ({case.transport})"] += case.schedules
    if options.transport is not None:
        return
    programs.check(programs.draw(number))
    done["programs"] += 1


if __name__ == "__main__":
    main()
