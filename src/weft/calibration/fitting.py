"""Fit an engine's constants to measured runs, and the error on a run that was left out.

Few constants with a physical meaning, none of them a point's own. Their logarithms have
normal priors (below); the fit is the most probable one, found by Gauss-Newton on the
logarithms of measured over predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from weft.calibration.measured import MeasuredRun, machine_of_run
from weft.prediction.latency import predict_latency
from weft.prediction.prediction import Machine
from weft.prediction.quantity import Quantity
from weft.vocabulary.model_source import load_spec

# Relative error that a measured time itself is taken to have.
_TPOT_NOISE: Final = 0.02
_TTFT_NOISE: Final = 0.05
_STEP: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A constant before any run is seen: its guess, and the spread of its logarithm."""

    owner: str
    field: str
    guess: float
    spread: float


Priors = tuple[Prior, ...]

VLLM_PRIORS: Final[Priors] = (
    Prior(owner="profile", field="request_us", guess=5000, spread=0.7),
    Prior(owner="profile", field="ranks_us", guess=1000, spread=0.7),
    Prior(owner="profile", field="step_us", guess=250, spread=0.7),
    Prior(owner="profile", field="sequence_us", guess=4, spread=0.7),
    Prior(owner="profile", field="hop_us", guess=10, spread=0.7),
    Prior(owner="accelerator", field="matmul_tflops", guess=720, spread=0.1),
    Prior(owner="accelerator", field="cache_gb_s", guess=4100, spread=0.1),
)
"""Guesses that do not come from the runs: traces, data sheets, orders of magnitude."""

WEFT_PRIORS: Final[Priors] = (
    Prior(owner="profile", field="request_us", guess=1000, spread=0.7),
    Prior(owner="profile", field="layer_launches", guess=30, spread=0.4),
    Prior(owner="profile", field="step_us", guess=60, spread=0.7),
    Prior(owner="profile", field="sequence_us", guess=3, spread=0.7),
    Prior(owner="profile", field="kernel_call_share", guess=0.6, spread=0.3),
    Prior(owner="profile", field="cache_rate_share", guess=0.85, spread=0.15),
    Prior(owner="profile", field="matmul_rate_share", guess=1.0, spread=0.1),
)
"""Guesses from single kernels and from counting launches; the device is vLLM's."""

PRIORS: Final[dict[str, Priors]] = {"vllm": VLLM_PRIORS, "weft": WEFT_PRIORS}


def fit(machine: Machine, runs: Sequence[MeasuredRun], iterations: int = 4) -> Machine:
    """The machine with every constant of its engine's ``PRIORS`` fitted to ``runs``."""
    priors = PRIORS[machine.profile.name]
    logs = np.log([prior.guess for prior in priors])
    centre = logs.copy()
    widths = np.asarray([prior.spread for prior in priors])
    for _ in range(iterations):
        residuals = _residuals(machine, logs, runs)
        jacobian = np.stack(
            [
                (_residuals(machine, logs + _STEP * unit, runs) - residuals) / _STEP
                for unit in np.eye(len(priors))
            ],
            axis=1,
        )
        left = jacobian.T @ jacobian + np.diag(widths**-2.0)
        right = -jacobian.T @ residuals - (logs - centre) / widths**2
        logs = logs + np.clip(np.linalg.solve(left, right), -0.7, 0.7)
    return _with_constants(machine, logs)


def leave_one_out(machine: Machine, runs: Sequence[MeasuredRun]) -> list[tuple[float, float]]:
    """(TTFT, TPOT) relative errors of every run, predicted by a fit to all the others."""
    errors = []
    for index, run in enumerate(runs):
        fitted = fit(machine, [*runs[:index], *runs[index + 1 :]])
        ttft_ms, tpot_ms = _predicted(fitted, run)
        assert run.ttft_ms is not None
        assert run.tpot_ms is not None
        errors.append((ttft_ms / run.ttft_ms - 1, tpot_ms / run.tpot_ms - 1))
    return errors


def _residuals(
    machine: Machine, logs: NDArray[np.float64], runs: Sequence[MeasuredRun]
) -> NDArray[np.float64]:
    """log(predicted / measured) over the noise, TTFT and TPOT of every run."""
    changed = _with_constants(machine, logs)
    values = []
    for run in runs:
        ttft_ms, tpot_ms = _predicted(changed, run)
        for predicted, measured, noise in (
            (ttft_ms, run.ttft_ms, _TTFT_NOISE),
            (tpot_ms, run.tpot_ms, _TPOT_NOISE),
        ):
            if measured is not None:
                values.append(math.log(predicted / measured) / noise)
    return np.asarray(values)


def _predicted(machine: Machine, run: MeasuredRun) -> tuple[float, float]:
    own = machine_of_run(run, machine)
    prediction = predict_latency(load_spec(run.model), run.layout, run.workload, own)
    return prediction.ttft_ms.value, prediction.tpot_ms.value


def _with_constants(machine: Machine, logs: NDArray[np.float64]) -> Machine:
    changes: dict[str, dict[str, Any]] = {"profile": {}, "accelerator": {}}
    for prior, value in zip(PRIORS[machine.profile.name], np.exp(logs), strict=True):
        old: Quantity = getattr(getattr(machine, prior.owner), prior.field)
        changes[prior.owner][prior.field] = replace(old, value=float(value))
    return replace(
        machine,
        profile=replace(machine.profile, **changes["profile"]),
        accelerator=replace(machine.accelerator, **changes["accelerator"]),
    )
