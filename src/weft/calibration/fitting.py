"""What is fitted to what, the fit, and the errors on runs that were left out.

Few constants with a physical meaning, none of them a point's own. Their logarithms have normal
priors; the fit is the most probable one, found by Gauss-Newton on the logarithms of predicted over
measured, where single large ones count for less (soft-L1 loss). Batches and public serving rows
are asked through the functions that the commands use.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from weft.calibration.measured import MeasuredRun, h200_runs, server_runs, weft_runs
from weft.calibration.public_rows import PublicRow, ask, split_of
from weft.prediction.machines import machine_named
from weft.prediction.prediction import Machine
from weft.prediction.serving import Serving

Vector = NDArray[np.float64]
Times = tuple[float, float]
"""TTFT and TPOT in ms."""
Errors = tuple[float | None, float | None]

_STEP: Final = 1e-2
_PER_SWEEP: Final = 6


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A constant before any run is seen: its guess, and the spread of its logarithm."""

    owner: Literal["profile", "accelerator"]
    field: str
    guess: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class FittedSet:
    """The constants of one engine that are fitted to one set of rows.

    rows: ``batches`` and ``loops`` (measured for weft, on H200; of a server's clients) or
    ``servers`` (public rows of fit sweeps).
    ttft_noise, tpot_noise: relative error that a measured time itself is taken to have.
    """

    engine: str
    rows: Literal["batches", "loops", "servers"]
    priors: tuple[Prior, ...]
    ttft_noise: float
    tpot_noise: float


def _profile(**guesses: tuple[float, float]) -> tuple[Prior, ...]:
    return tuple(
        Prior(owner="profile", field=field, guess=guess, spread=spread)
        for field, (guess, spread) in guesses.items()
    )


_KERNELS: Final = _profile(
    product_share=(0.9, 0.15),
    experts_share=(0.9, 0.15),
    attention_share=(1.1, 0.3),
    experts_layer_us=(15, 0.5),
    server_prompt_step_us=(500, 0.7),
    server_token_us=(8, 0.5),
)
_CALLS: Final = _profile(communication_share=(1.1, 0.3), kernel_call_share=(0.8, 0.3))
"""Of engines whose batches were not measured for weft."""
_HOST: Final = _profile(
    server_us=(5000, 0.7),
    server_step_us=(50, 0.7),
    server_sequence_us=(8, 0.7),
    server_prompt_us=(500, 0.5),
)

FITS: Final = (
    FittedSet(
        engine="vllm",
        rows="batches",
        ttft_noise=0.05,
        tpot_noise=0.02,
        priors=(
            *_profile(
                request_us=(5000, 0.7),
                ranks_us=(1000, 0.7),
                step_us=(250, 0.7),
                sequence_us=(4, 0.7),
                hop_us=(10, 0.7),
                arrival_us=(200, 0.7),
                schedule_us=(400, 0.7),
                large_messages_share=(0.9, 0.1),
            ),
            Prior(owner="accelerator", field="matmul_tflops", guess=720, spread=0.1),
            Prior(owner="accelerator", field="cache_gb_s", guess=4100, spread=0.1),
        ),
    ),
    FittedSet(
        engine="weft",
        rows="batches",
        ttft_noise=0.05,
        tpot_noise=0.02,
        priors=_profile(
            request_us=(1000, 0.7),
            step_us=(60, 0.7),
            sequence_us=(3, 0.7),
            stage_us=(100, 0.7),
            kernel_call_share=(0.6, 0.3),
            cache_rate_share=(0.85, 0.15),
            matmul_rate_share=(1.0, 0.1),
            experts_layer_us=(6, 0.5),
        ),
    ),
    *(
        FittedSet(engine=engine, rows="loops", ttft_noise=0.15, tpot_noise=0.05, priors=_HOST)
        for engine in ("weft", "vllm")
    ),
    FittedSet(engine="vllm", rows="servers", ttft_noise=0.4, tpot_noise=0.12, priors=_KERNELS),
    *(
        FittedSet(
            engine=engine,
            rows="servers",
            ttft_noise=0.4,
            tpot_noise=0.12,
            priors=_KERNELS + _CALLS + _HOST,
        )
        for engine in ("sglang", "trtllm")
    ),
)
"""What is fitted to what. Guesses come from traces, single kernels, counts and data sheets."""


def fit_named(engine: str, rows: str) -> FittedSet:
    return next(fit for fit in FITS if (fit.engine, fit.rows) == (engine, rows))


def fitted_runs(fit: FittedSet) -> list[MeasuredRun]:
    """The measured runs that the constants of ``fit`` are fitted to."""
    rows = {"batches": (*h200_runs(), *weft_runs()), "loops": server_runs(), "servers": ()}
    return [run for run in rows[fit.rows] if run.engine == fit.engine and run.role == "fitted"]


def fitted_rows(rows: Sequence[PublicRow], engine: str) -> list[PublicRow]:
    """Public rows of an engine's fit sweeps: at most so many a sweep, evenly."""
    split, sweeps = split_of(rows), defaultdict(list)
    for row in rows:
        if row.engine == engine and split[row.sweep] == "fit" and row.odd is None:
            sweeps[row.sweep].append(row)
    return [row for same in sweeps.values() for row in same[:: -(-len(same) // _PER_SWEEP)]]


def fit_runs(machine: Machine, fit: FittedSet, runs: Sequence[MeasuredRun]) -> Machine:
    """The machine with the constants of ``fit`` fitted to ``runs``."""

    def residuals(values: Vector) -> Vector:
        changed = _with_constants(machine, fit, values)
        return np.asarray([error for run in runs for error in _run_errors(fit, run, changed)])

    return _with_constants(machine, fit, most_probable(fit.priors, residuals))


def fit_servers(engine: str, rows: Sequence[PublicRow]) -> Machine:
    """A machine with the engine's profile fitted to public rows; rows it cannot answer are left out."""
    fit = fit_named(engine, "servers")
    base = machine_named(engine, "h200-sxm")
    answered = [row for row in rows if isinstance(ask(row), Serving)]

    def residuals(values: Vector) -> Vector:
        profile = _with_constants(base, fit, values).profile
        found: list[float] = []
        for row in answered:
            answer = ask(row, profile)
            assert isinstance(answer, Serving)
            times = answer.ttft_ms.value, answer.tpot_ms.value
            found += _errors(fit, times, (row.ttft_ms, row.tpot_ms))
        return np.asarray(found)

    shipped = [getattr(getattr(base, prior.owner), prior.field).value for prior in fit.priors]
    return _with_constants(base, fit, most_probable(fit.priors, residuals, start=shipped))


def most_probable(
    priors: Sequence[Prior],
    residuals: Callable[[Vector], Vector],
    iterations: int = 3,
    start: Sequence[float] | None = None,
) -> Vector:
    """The constants that ``residuals`` (in units of their noise) and the priors make likeliest.

    ``start``: where the search begins, if not at the guesses. A step that makes it worse is halved.
    """
    centre = np.log([prior.guess for prior in priors])
    logs = centre if start is None else np.log(start)
    weights = np.diag([1 / prior.spread for prior in priors])

    def both(at: Vector, found: Vector) -> Vector:
        return np.concatenate([found, weights @ (at - centre)])

    here = residuals(np.exp(logs))
    for _ in range(iterations):
        columns = [
            (residuals(np.exp(logs + _STEP * unit)) - here) / _STEP for unit in np.eye(len(logs))
        ]
        left, now = np.vstack([np.stack(columns, axis=1), weights]), both(logs, here)
        step = np.clip(np.linalg.lstsq(left, -now, rcond=None)[0], -0.7, 0.7)
        for part in (1.0, 0.5, 0.25):
            there = logs + part * step
            found = residuals(np.exp(there))
            if np.linalg.norm(both(there, found)) < np.linalg.norm(now):
                logs, here = there, found
                break
    return np.exp(logs)


def leave_one_out(machine: Machine, fit: FittedSet, runs: Sequence[MeasuredRun]) -> list[Errors]:
    """The errors of every run, predicted by a fit to all the others."""
    return [
        errors_of(fit_runs(machine, fit, [*runs[:index], *runs[index + 1 :]]), run)
        for index, run in enumerate(runs)
    ]


def errors_of(machine: Machine, run: MeasuredRun) -> Errors:
    """Relative errors of a run's TTFT and TPOT; None where it was not measured."""
    ttft, tpot = (
        None if known is None else found / known - 1
        for found, known in zip(_values(run, machine), (run.ttft_ms, run.tpot_ms), strict=True)
    )
    return ttft, tpot


def _values(run: MeasuredRun, machine: Machine) -> Times:
    ttft, tpot = run.ask(machine)
    return ttft.value, tpot.value


def _run_errors(fit: FittedSet, run: MeasuredRun, machine: Machine) -> Iterator[float]:
    return _errors(fit, _values(run, machine), (run.ttft_ms, run.tpot_ms))


def _errors(
    fit: FittedSet, found: Times, measured: tuple[float | None, float | None]
) -> Iterator[float]:
    noises = fit.ttft_noise, fit.tpot_noise
    for time, known, noise in zip(found, measured, noises, strict=True):
        if known is not None:
            error = math.log(time / known) / noise
            yield math.copysign(math.sqrt(2 * (math.sqrt(1 + error**2) - 1)), error)


def _with_constants(machine: Machine, fit: FittedSet, values: Vector) -> Machine:
    for prior, value in zip(fit.priors, values, strict=True):
        owner = getattr(machine, prior.owner)
        changed = replace(getattr(owner, prior.field), value=float(value))
        machine = replace(machine, **{prior.owner: replace(owner, **{prior.field: changed})})
    return machine
