"""Fit the engine profile ``weft`` to its measured rows and print constants and errors.

Run: python benchmarks/fit_weft_profile.py                     (the package's rows)
     python benchmarks/fit_weft_profile.py --rows-from FILE    (first replace the package's rows
         by the best of each configuration in a file like results/decode_h200x4.json,
         whose runs name stage_layers where the split was not even)
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from weft.calibration.fitting import PRIORS, fit, leave_one_out
from weft.calibration.measured import MeasuredRun, machine_of_run, weft_runs
from weft.prediction.latency import predict_latency
from weft.prediction.machines import machine_named
from weft.prediction.prediction import Machine
from weft.vocabulary.model_source import load_spec

DATA = Path(__file__).parents[1] / "src/weft/prediction/data/measurements/weft_h200x4.json"
FITTED = {("llama-3.1-8b", "1"), ("llama-3.1-8b", "tp2")}
TUNED = {("llama-3.1-8b", "pp2")}  # stage_us was chosen with it
COMMON_DECODE = 129


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows-from", type=Path)
    arguments = parser.parse_args()
    if arguments.rows_from:
        replace_rows(json.loads(arguments.rows_from.read_text(encoding="utf-8")))
    machine = machine_named("weft", "h200-sxm")
    fitted = [run for run in weft_runs() if run.role == "fitted"]
    result = fit(machine, fitted)
    for prior in PRIORS["weft"]:
        print(f"{prior.field:20} {getattr(result.profile, prior.field).value:.4g}")
    unseen = [run for run in weft_runs() if run.role == "test"]
    print_errors("fitted", fitted, [errors(result, run) for run in fitted])
    print_errors("left out", fitted, leave_one_out(machine, fitted))
    print_errors("unseen", unseen, [errors(result, run) for run in unseen])


def errors(machine: Machine, run: MeasuredRun) -> tuple[float, float]:
    """(TTFT, TPOT) relative errors."""
    own = machine_of_run(run, machine)
    found = predict_latency(load_spec(run.model), run.layout, run.workload, own)
    assert run.ttft_ms is not None
    assert run.tpot_ms is not None
    return found.ttft_ms.value / run.ttft_ms - 1, found.tpot_ms.value / run.tpot_ms - 1


def print_errors(
    title: str, runs: Iterable[MeasuredRun], pairs: Sequence[tuple[float, float]]
) -> None:
    for run, (ttft, tpot) in zip(runs, pairs, strict=True):
        print(f"{title:9} {run.name:60} TTFT {ttft:+7.1%}  TPOT {tpot:+7.1%}")
    means = [statistics.mean(abs(pair[index]) for pair in pairs) for index in (0, 1)]
    print(f"{title:9} {'mean of absolute errors':60} TTFT {means[0]:7.1%}  TPOT {means[1]:7.1%}")


def replace_rows(document: dict[str, Any]) -> None:
    """Best TTFT and best TPOT of each configuration, over all runs of it."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in document["runs"]:
        own = "nccl" if run["job"].endswith("nccl") else None
        for row in run["rows"]:
            layers = row.get("stage_layers") or run.get("stage_layers")
            load = row["batch"], row["prompt_tokens"], row["decode_tokens"]
            key = (row["model"], row["layout"], tuple(layers or ()), own, *load)
            found = best.setdefault(key, {"ttft_ms": row["ttft_ms"], "tpot_ms": row["tpot_ms"]})
            for name in ("ttft_ms", "tpot_ms"):
                found[name] = min(found[name], row[name])
    data = json.loads(DATA.read_text(encoding="utf-8"))
    data["rows"] = [_row(key, best[key]) for key in best]
    text = json.dumps(data, indent=1)
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", _one_line, text)
    text = re.sub(r'\{\s+("model".*?)\s+\}', _one_line, text, flags=re.DOTALL)
    DATA.write_text(text + "\n", encoding="utf-8")


def _row(key: tuple[Any, ...], times: dict[str, float]) -> dict[str, Any]:
    model, layout, layers, own, batch, prompt, decode = key
    row: dict[str, Any] = {"model": model, "layout": layout}
    row |= {"stage_layers": list(layers)} if layers else {}
    row |= {"all_reduce": own} if own else {}
    row |= {"batch": batch, "prompt": prompt}
    row |= {"decode": decode} if decode != COMMON_DECODE else {}
    row |= {"ttft_ms": round(times["ttft_ms"], 2), "tpot_ms": round(times["tpot_ms"], 3)}
    return row | {"role": _role(model, layout, own)}


def _role(model: str, layout: str, own: str | None) -> str:
    """Experts are shown only: the engine's own path for them is far from what memory allows."""
    if load_spec(model).is_moe:
        return "compared"
    if own is None and (model, layout) in FITTED:
        return "fitted"
    return "tuned" if own is None and (model, layout) in TUNED else "test"


def _one_line(match: re.Match[str]) -> str:
    first, last = match[0][0], match[0][-1]
    return first + re.sub(r"\s+", " ", match[1]) + last


if __name__ == "__main__":
    main()
