"""How much of a communication kernel ran beside compute kernels of the same device."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from weft.importer.rank_trace import TracedCall


def merged(starts: array[float], ends: array[float]) -> tuple[array[float], array[float]]:
    """The union of intervals as disjoint intervals in time order."""
    if not starts:
        return array("d"), array("d")
    start, end = np.frombuffer(starts), np.frombuffer(ends)
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    is_new = np.concatenate(([True], start[1:] > reach[:-1]))
    is_last = np.concatenate((is_new[1:], [True]))
    return array("d", start[is_new].tolist()), array("d", reach[is_last].tolist())


def set_overlaps(calls: Sequence[TracedCall], starts: array[float], ends: array[float]) -> None:
    """Set ``overlapped_us`` of every device kernel from the merged compute intervals."""
    kernels = [call for call in calls if call.on_device]
    if not kernels:
        return
    begin = np.array([call.start_us for call in kernels])
    finish = np.array([call.end_us for call in kernels])
    covered = _covered_until(finish, starts, ends) - _covered_until(begin, starts, ends)
    for call, value in zip(kernels, covered.tolist(), strict=True):
        call.overlapped_us = round(value, 3)


def _covered_until(times: np.ndarray, starts: array[float], ends: array[float]) -> np.ndarray:
    """Compute time before each of ``times``, in microseconds."""
    if not starts:
        return np.zeros_like(times)
    start, end = np.frombuffer(starts), np.frombuffer(ends)
    total = np.concatenate(([0.0], np.cumsum(end - start)))
    index = np.searchsorted(start, times, side="right")
    inside = np.where(index > 0, np.maximum(end[np.maximum(index - 1, 0)] - times, 0.0), 0.0)
    return np.asarray(total[index] - inside)
