"""``weft predict scoreboard``: predictions against every measurement at hand."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from weft.cli import options
from weft.cli.output import OutputFormat, print_json, print_rows, progress

# TPOT limits in ms for which the best layout is asked.
_LIMITS_MS = (10.0, 15.0, 20.0, 30.0, 50.0)


def scoreboard(
    runs: Annotated[Path | None, "Own measured runs to compare with (weft.measured/1)."] = None,
    silicon: Annotated[
        Path | None,
        "A silicon_sample.csv [that of an installed aiconfigurator].",
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Ask one public row in EVERY.")] = 1,
    peer: Annotated[
        Path | None,
        "aiconfigurator's answers, from benchmarks/aiconfigurator_rows.py.",
    ] = None,
    leave_one_out: Annotated[
        bool,
        typer.Option("--leave-one-out", help="Refit the engine without each fitted row."),
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="Print every row too.")] = False,
    output_format: options.Format = OutputFormat.TABLE,
) -> None:
    """Compare predictions with measured rows: errors, interval coverage, decisions.

    Example: weft predict scoreboard --silicon silicon_sample.csv --every 10
    """
    from weft.calibration import scoreboard as board
    from weft.calibration.measured import (
        h200_runs,
        runs_from_file,
        server_runs,
        weft_runs,
    )
    from weft.calibration.public_rows import find_file, peer_times, read_rows

    own = [] if runs is None else runs_from_file(runs)
    peers = {} if peer is None else peer_times(peer)
    scores = board.score_runs([*h200_runs(), *weft_runs(), *server_runs(), *own])
    choices: list[Any] = []
    answers = None
    file = find_file(silicon)
    if file is not None:
        found = read_rows(file)
        with progress() as bar:
            task = bar.add_task("public rows", total=len(found) // every)
            answers = board.ask_all(
                found, lambda done, _all: bar.update(task, completed=done), every=every
            )
        scores += board.score_answers(answers, peers)
        choices = board.decisions(answers, _LIMITS_MS)
    document = board.document(scores, choices, answers)
    if leave_one_out:
        document["leave_one_out"] = _leave_one_out()
    if output_format is OutputFormat.JSON:
        print_json(document)
    elif output_format is OutputFormat.CSV:
        print_rows([_row(score) for score in scores], output_format)
    else:
        _print_tables(document, scores, rows)


def _leave_one_out() -> list[dict[str, Any]]:
    from weft.calibration.fitting import FITS, fitted_runs, leave_one_out
    from weft.prediction.machines import machine_named

    rows = []
    for fit in FITS:
        fitted = fitted_runs(fit)
        errors = leave_one_out(machine_named(fit.engine, "h200-sxm"), fit, fitted)
        rows += [
            {
                "engine": f"{fit.engine}, {fit.rows}",
                "name": run.name,
                "ttft_error": ttft,
                "tpot_error": tpot,
            }
            for run, (ttft, tpot) in zip(fitted, errors, strict=True)
        ]
    return rows


def _print_tables(document: dict[str, Any], scores: Any, with_rows: bool) -> None:
    if with_rows:
        print_rows([_row(score) for score in scores], OutputFormat.TABLE, title="Every row")
    summary = [_summary(item) for item in document["summaries"]]
    print_rows(summary, OutputFormat.TABLE, title="Errors (MAPE) and 90 % intervals")
    if "answered" in document:
        _print_answered(document["answered"])
    if document["decisions"]:
        table = [
            {
                "chooser": item["chooser"],
                "questions": item["questions"],
                "best_or_within_5_%": _percent(item["near_best"]),
                "over_limit": _percent(item["over_limit"]),
            }
            for item in document["decisions"]
        ]
        print_rows(table, OutputFormat.TABLE, title="Most tokens/s/GPU under a TPOT limit")
    elif "answered" not in document:
        print("no serving rows: aiconfigurator is not installed (or name --silicon FILE)")
    if "leave_one_out" in document:
        _print_left_out(document["leave_one_out"])


def _print_answered(answered: dict[str, Any]) -> None:
    share = answered["answered"] / max(answered["rows"], 1)
    print(f"answered: {answered['answered']} of {answered['rows']} public rows ({_percent(share)})")
    rows = [{"rows": count, "reason": reason} for reason, count in answered["refused"].items()]
    if rows:
        print_rows(rows[:10], OutputFormat.TABLE, title="Why the others are not")


def _print_left_out(rows: list[dict[str, Any]]) -> None:
    table = []
    for engine in dict.fromkeys(row["engine"] for row in rows):
        own = [row for row in rows if row["engine"] == engine]
        table += [_left_out(row["name"], row) for row in own]
        means = {
            key: fmean(abs(row[key]) for row in own if row[key] is not None)
            for key in ("ttft_error", "tpot_error")
        }
        table.append(_left_out("mean of absolute errors", means | {"engine": engine}))
    print_rows(table, OutputFormat.TABLE, title="Leave-one-out errors of the engine's constants")


def _left_out(name: str, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "engine": row["engine"],
        "left out": name,
        "ttft": _or_none(row["ttft_error"]),
        "tpot": _or_none(row["tpot_error"]),
    }


def _row(score: Any) -> dict[str, Any]:
    return {
        "source": score.source,
        "role": score.role,
        "name": score.name,
        "quantity": score.quantity,
        "measured": float(f"{score.measured:.4g}"),
        "predicted": float(f"{score.predicted:.4g}"),
        "low": float(f"{score.low:.4g}"),
        "high": float(f"{score.high:.4g}"),
        "error": _percent(score.error),
        "peer_error": None if score.peer_error is None else _percent(score.peer_error),
    }


def _summary(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": item["source"],
        "role": item["role"],
        "quantity": item["quantity"],
        "rows": item["count"],
        "mape": _percent(item["mean_error"]),
        "median": _percent(item["median_error"]),
        "bias": _percent(item["bias"]),
        "inside_interval": _percent(item["inside"]),
        "shared": item["shared"],
        "shared_mape": _or_none(item["shared_error"]),
        "aiconfigurator_mape": _or_none(item["peer_error"]),
    }


def _or_none(value: float | None) -> str | None:
    return None if value is None else _percent(value)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
