"""Latency and bandwidth of each tier from measured all-reduces, with their uncertainty.

The α-β forms of all algorithms share five numbers: the fixed cost of a call, and α and
bandwidth of each tier. Least squares on the logarithms (a relative error counts the same
at every size), by Levenberg-Marquardt; the covariance at the minimum gives the uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from weft.allreduce.algorithms import PROGRAMS
from weft.allreduce.cost import latency_us
from weft.errors import FileFormatError
from weft.fabric.fabric import Fabric, MeasuredTable, Tier

Vector = NDArray[np.float64]
Residuals = Callable[[Vector], Vector]

_START: Final = (20.0, 20.0, 2.0, 100.0, 1.0)
_ITERATIONS: Final = 60
_STEP: Final = 1e-4
_LARGEST: Final = 1e6
"""Uncertainty factor at which a number was not determined at all."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Numbers (call µs, intra µs and GB/s, inter µs and GB/s), their deviations, the residual.

    typical_error: median relative difference between the forms and the measurements.
    """

    values: tuple[float, ...]
    deviations: tuple[float, ...]
    typical_error: float


def fit_fabric(
    name: str,
    tables: Sequence[MeasuredTable],
    gpus_per_node: int,
    fingerprint: Mapping[str, str] | None,
    source: str,
    *,
    fitted: Sequence[MeasuredTable] | None = None,
) -> Fabric:
    """A fabric with these tables and the tiers that explain them best.

    fitted: the tables to fit the tiers to, where not all should count. Raises
    FileFormatError where none of them is of a program of weft.
    """
    used = tables if fitted is None else fitted
    fit = fit_tiers(used)
    origin = f"{source}; fitted, {fit.typical_error:.0%} median difference"
    has_inter = any(table.nodes > 1 for table in used)
    inter_origin = origin if has_inter else "not measured: one node alone; a placeholder"
    return Fabric(
        name=name,
        gpus_per_node=gpus_per_node,
        intra=_tier(fit, 1, origin),
        inter=_tier(fit, 3, inter_origin),
        call_us=fit.values[0],
        call_uncertainty_us=fit.deviations[0],
        call_source=origin,
        uses_nccl=False,
        tables=tuple(tables),
        fingerprint=fingerprint,
    )


def fit_tiers(tables: Sequence[MeasuredTable]) -> Fit:
    """The five numbers that the tables of weft's programs determine."""
    used = [table for table in tables if table.algorithm in PROGRAMS]
    if not used:
        raise FileFormatError("no measurement of an algorithm of weft to fit links to")
    measured = np.log(np.concatenate([table.latency_us for table in used]))

    def residuals(logs: Vector) -> Vector:
        return np.asarray(np.log(_model(used, np.exp(logs))) - measured)

    logs, jacobian = _minimise(residuals, np.log(_START))
    rest = residuals(logs)
    deviations = _deviations(jacobian, rest)
    values = np.exp(logs)
    return Fit(
        values=tuple(values.tolist()),
        deviations=tuple((values * np.minimum(deviations, _LARGEST)).tolist()),
        typical_error=float(np.median(np.abs(np.expm1(rest)))),
    )


def _tier(fit: Fit, first: int, source: str) -> Tier:
    return Tier(
        latency_us=fit.values[first],
        latency_uncertainty_us=fit.deviations[first],
        latency_source=source,
        bandwidth_gb_s=fit.values[first + 1],
        bandwidth_uncertainty_gb_s=fit.deviations[first + 1],
        bandwidth_source=source,
    )


def _model(tables: Sequence[MeasuredTable], values: Vector) -> Vector:
    fabric = _fabric_of(values)
    times = [
        latency_us(
            table.algorithm,
            table.bytes,
            table.nodes,
            table.ranks // table.nodes,
            fabric,
            use_tables=False,
        )
        for table in tables
    ]
    return np.concatenate(times)


def _fabric_of(values: Vector) -> Fabric:
    fit = Fit(values=tuple(values.tolist()), deviations=(0.0,) * 5, typical_error=0.0)
    return Fabric(
        name="fit",
        gpus_per_node=1,
        intra=_tier(fit, 1, ""),
        inter=_tier(fit, 3, ""),
        call_us=fit.values[0],
    )


def _minimise(residuals: Residuals, start: Vector) -> tuple[Vector, Vector]:
    """Levenberg-Marquardt; the place and the Jacobian there."""
    place, damping = start.copy(), 1e-2
    rest = residuals(place)
    jacobian = _jacobian(residuals, place, rest)
    for _ in range(_ITERATIONS):
        normal = jacobian.T @ jacobian
        step = np.linalg.solve(
            normal + damping * (np.diag(np.diag(normal)) + 1e-9 * np.eye(len(place))),
            -jacobian.T @ rest,
        )
        candidate = place + np.clip(step, -1.0, 1.0)
        better = residuals(candidate)
        if better @ better < rest @ rest:
            place, rest, damping = candidate, better, damping / 3
            jacobian = _jacobian(residuals, place, rest)
        else:
            damping = min(damping * 4, 1e9)
    return place, jacobian


def _jacobian(residuals: Residuals, place: Vector, rest: Vector) -> Vector:
    columns = []
    for index in range(len(place)):
        moved = place.copy()
        moved[index] += _STEP
        columns.append((residuals(moved) - rest) / _STEP)
    return np.stack(columns, axis=1)


def _deviations(jacobian: Vector, rest: Vector) -> Vector:
    """Relative standard deviations; very large where a number does not matter."""
    freedom = max(len(rest) - jacobian.shape[1], 1)
    variance = float(rest @ rest) / freedom
    normal = jacobian.T @ jacobian + 1e-12 * np.eye(jacobian.shape[1])
    return np.asarray(np.sqrt(np.maximum(np.diag(np.linalg.inv(normal)) * variance, 0.0)))
