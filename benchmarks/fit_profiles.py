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
from weft.prediction.serving_errors import keys

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
    """The middle nine tenths of measured over predicted, of every kind of enough fit rows."""
    split, ratios = split_of(public), Ratios(lambda: defaultdict(list))
    for row in public:
        found = ask(row) if split[row.sweep] == "fit" else None
        if isinstance(found, Serving):
            pair = row.ttft_ms / found.ttft_ms.value, row.tpot_ms / found.tpot_ms.value
            family, device = found.spec.family, found.machine.accelerator.name
            for key in keys(row.engine, family, device):
                ratios[key][row.sweep].append(pair)
    write_document(ratios)


def write_document(ratios: Ratios) -> None:
    """One sweep says nothing of the next, so a kind needs two."""
    ranges = {}
    for key, sweeps in sorted(ratios.items()):
        pairs = [pair for same in sweeps.values() for pair in same]
        if len(pairs) >= LEAST and len(sweeps) > 1:
            ends = np.quantile(np.asarray(pairs), (0.05, 0.95), axis=0).T.round(3).tolist()
            ranges[key] = {"ttft": ends[0], "tpot": ends[1], "rows": len(pairs)}
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(ranges[key])}" for key in ranges)
    head = '{"schema": "weft.serving-errors/1",\n "source": ' + json.dumps(SOURCES["servers"])
    path = DATA / "serving_errors.json"
    path.write_text(f'{head},\n "ranges": {{\n{lines}\n }}}}\n', encoding="utf-8")


LEAST = 30
Ratios = defaultdict[str, dict[str, list[tuple[float, float]]]]
"""Measured over predicted (TTFT, TPOT) by kind of server and sweep."""
SOURCES = {
    "batches": "batches measured on H200 (data/measurements; benchmarks/fit_profiles.py)",
    "loops": "closed loops of weft serve on one H200 (data/measurements/servers_h200x2.json; "
    "benchmarks/fit_profiles.py)",
    "servers": "fit sweeps of the public serving rows (aiconfigurator's silicon_sample.csv, "
    "Apache-2.0; docs/predict.md)",
}


if __name__ == "__main__":
    main()
