"""Fit the engine profiles through the functions that the commands use, and print what changed.

    python benchmarks/fit_profiles.py                          (the package's own runs: seconds)
    python benchmarks/fit_profiles.py --silicon silicon_sample.csv --engine vllm    (+ public rows)

What is fitted to what is ``FITS`` of weft.calibration.fitting (docs/predict.md has the table).
``--write`` puts the values into src/weft/prediction/data; their sources are in the files.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
from weft.calibration.public_rows import read_rows
from weft.prediction.machines import machine_named
from weft.prediction.prediction import Machine

DATA = Path(__file__).parents[1] / "src/weft/prediction/data"
ACCELERATOR = "h200-sxm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--silicon", type=Path)
    parser.add_argument("--engine")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    public = read_rows(arguments.silicon) if arguments.silicon else []
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


SOURCES = {
    "batches": "batches measured on H200 (data/measurements; benchmarks/fit_profiles.py)",
    "loops": "closed loops of weft serve on one H200 (data/measurements/servers_h200x2.json; "
    "benchmarks/fit_profiles.py)",
    "servers": "fit sweeps of the public serving rows (aiconfigurator's silicon_sample.csv, "
    "Apache-2.0; docs/predict.md)",
}


if __name__ == "__main__":
    main()
