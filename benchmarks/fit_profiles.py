"""Fit the engine profiles through the functions that the commands use, and print what changed.

    python benchmarks/fit_profiles.py                          (the package's own runs: seconds)
    python benchmarks/fit_profiles.py --silicon silicon_sample.csv --engine vllm    (+ public rows)

What is fitted to what is ``FITS`` of weft.calibration.fitting (docs/predict.md has the table).
``--write`` puts the values into src/weft/prediction/data; their sources are in the files. After
that ``--silicon FILE --ranges`` writes how far the rows of fit sweeps lie off, by kind of server.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from weft.calibration.fitting import (
    FITS,
    Errors,
    FittedSet,
    errors_of,
    fit_runs,
    fit_servers,
    fitted_rows,
    fitted_runs,
    leave_one_out,
)
from weft.calibration.public_rows import PublicRow, ask, read_rows, split_of
from weft.prediction.machines import machine_named
from weft.prediction.prediction import Machine
from weft.prediction.serving import Serving

DATA = Path(__file__).parents[1] / "src/weft/prediction/data"
ACCELERATOR = "h200-sxm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--silicon", type=Path)
    parser.add_argument("--engine")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--ranges", action="store_true", help="intervals of servers' times instead")
    arguments = parser.parse_args()
    public = read_rows(arguments.silicon) if arguments.silicon else []
    if arguments.ranges:
        write_ranges(public)
        return
    for fit in FITS:
        if arguments.engine in (None, fit.engine) and (public or fit.rows != "servers"):
            fitted = by_public_rows(fit, public) if fit.rows == "servers" else by_runs(fit)
            if arguments.write:
                write(fit, fitted)


def by_public_rows(fit: FittedSet, public: list[Any]) -> Machine:
    rows = fitted_rows(public, fit.engine)
    fitted = fit_servers(fit.engine, rows)
    print_constants(fit, fitted, len(rows))
    return fitted


def by_runs(fit: FittedSet) -> Machine:
    machine, runs = machine_named(fit.engine, ACCELERATOR), fitted_runs(fit)
    fitted = fit_runs(machine, fit, runs)
    print_constants(fit, fitted, len(runs))
    print_errors("fitted", (errors_of(fitted, run) for run in runs))
    print_errors("left out", leave_one_out(machine, fit, runs))
    return fitted


def print_constants(fit: FittedSet, fitted: Machine, count: int) -> None:
    before = machine_named(fit.engine, ACCELERATOR)
    print(f"{fit.engine}, {fit.rows} ({count} rows)")
    for prior in fit.priors:
        new, old = (getattr(getattr(m, prior.owner), prior.field).value for m in (fitted, before))
        print(f"  {prior.field:22} guess {prior.guess:8g}  before {old:8.4g}  fitted {new:8.4g}")


def print_errors(title: str, errors: Iterable[Errors]) -> None:
    columns = zip(*errors, strict=True)
    ttft, tpot = (statistics.mean(abs(x) for x in column if x is not None) for column in columns)
    print(f"  {title}: mean of absolute errors TTFT {ttft:.1%}, TPOT {tpot:.1%}")


def write(fit: FittedSet, fitted: Machine) -> None:
    for prior in fit.priors:
        is_profile = prior.owner == "profile"
        name = f"engines/{fit.engine}.json" if is_profile else f"accelerators/{ACCELERATOR}.json"
        document = json.loads((DATA / name).read_text(encoding="utf-8"))
        value = getattr(getattr(fitted, prior.owner), prior.field).value
        known = document.setdefault(prior.field, {"spread": prior.spread, "source": ""})
        source = known["source"] if known.get("origin") == "fitted" else SOURCES[fit.rows]
        document[prior.field] = {
            "value": float(f"{value:.4g}"),
            "spread": known["spread"] or prior.spread,
            "origin": "fitted",
            "source": source,
        }
        (DATA / name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def write_ranges(public: list[PublicRow]) -> None:
    """Intervals of measured over predicted by engine, from the rows of fit sweeps."""
    split = split_of(public)
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row in public:
        answer = ask(row) if split[row.sweep] == "fit" else None
        if isinstance(answer, Serving):
            pair = row.ttft_ms / answer.ttft_ms.value, row.tpot_ms / answer.tpot_ms.value
            found[row.engine][row.sweep].append(np.log(pair))
    write_document({engine: list(sweeps.values()) for engine, sweeps in found.items()})


def write_document(engines: dict[str, list[list[Any]]]) -> None:
    """``engines``: logarithms of (TTFT, TPOT) measured over predicted, a list a sweep."""
    path = DATA / "serving_errors.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    wider = [widening(engines, which) for which in (0, 1)]
    for engine, sweeps in sorted(engines.items()):
        ends = np.exp(np.asarray(wider)[:, None] * middle(sweeps).T).round(3).tolist()
        document["ranges"][engine] = {
            "ttft": ends[0],
            "tpot": ends[1],
            "rows": sum(map(len, sweeps)),
        }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def middle(sweeps: list[list[Any]]) -> Any:
    """The ends of the middle nine tenths, [low or high, time]; the prediction is inside."""
    low, high = np.quantile(np.concatenate(sweeps), (0.05, 0.95), axis=0)
    return np.stack([np.minimum(low, 0), np.maximum(high, 0)])


def widening(engines: dict[str, list[list[Any]]], which: int) -> float:
    """How much wider an interval must be for nine in ten rows of sweeps that it was not made of."""
    needed = []
    for sweeps in engines.values():
        for index, left_out in enumerate(sweeps):
            low, high = middle([*sweeps[:index], *sweeps[index + 1 :]])[:, which]
            values = np.asarray(left_out)[:, which]
            needed += list(np.where(values < 0, values / low, values / high))
    return float(np.quantile(needed, 0.9))


SOURCES = {
    "batches": "batches measured on H200 (data/measurements; benchmarks/fit_profiles.py)",
    "loops": "closed loops of weft serve on one H200 (data/measurements/servers_h200x2.json; "
    "benchmarks/fit_profiles.py)",
    "servers": "fit sweeps of the public serving rows (aiconfigurator's silicon_sample.csv, "
    "Apache-2.0; docs/predict.md)",
}


if __name__ == "__main__":
    main()
