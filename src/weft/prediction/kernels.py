"""Curves of an engine's kernels on a device: ``time = call + share x roofline``, by rows.

Files of ``data/kernels`` are distilled from public tables by benchmarks/distil_kernels.py.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from weft.vocabulary.weight_formats import WeightFormat

_NORM: Final = 3.0

Line = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Call time in µs and share of the roofline at some numbers of rows, in between by log."""

    logs: tuple[float, ...]
    call_us: tuple[float, ...]
    share: tuple[float, ...]

    def time_us(self, rows: float, roofline_us: float) -> float:
        at = math.log(max(rows, 1.0))
        index = bisect_right(self.logs, at)
        if index in (0, len(self.logs)):
            edge = min(index, len(self.logs) - 1)
            return self.call_us[edge] + self.share[edge] * roofline_us
        low, high = self.logs[index - 1], self.logs[index]
        part = (at - low) / (high - low)
        call = self.call_us[index - 1] + part * (self.call_us[index] - self.call_us[index - 1])
        share = self.share[index - 1] + part * (self.share[index] - self.share[index - 1])
        return call + share * roofline_us


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """One device's curves, of one engine where it has them, else of another.

    bandwidth_gb_s, tflops: the data sheet's, which the shares refer to (16, 8 and 4 bits; 0: none).
    attention, latent: (call_us, shares) by phase and bits of the cache.
    """

    bandwidth_gb_s: float
    tflops: tuple[float, float, float]
    products: Mapping[str, Curve]
    experts: Mapping[str, Curve]
    attention: Mapping[str, Line]
    latent: Mapping[str, Line]
    source: str

    def roofline_us(self, traffic: float, operations: float, form: WeightFormat) -> float:
        """3-norm of ``traffic`` bytes and ``operations`` at the data sheet's rates."""
        rate = self.tflops[form.rate] or self.tflops[0]
        memory, compute = traffic * 1e-3 / self.bandwidth_gb_s, operations * 1e-6 / rate
        return float((memory**_NORM + compute**_NORM) ** (1 / _NORM))

    def memory_us(self, traffic: float) -> float:
        return traffic * 1e-3 / self.bandwidth_gb_s

    def compute_us(self, operations: float) -> float:
        return operations * 1e-6 / self.tflops[0]


@cache
def kernels_of(device: str, engines: tuple[str, ...]) -> Kernels | None:
    """The curves of a built-in device, of the first engine that has each; None where none has."""
    file = resources.files("weft.prediction") / "data" / "kernels" / f"{device}.json"
    if not file.is_file():
        return None
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    tables = document["engines"]
    order = [tables[name] for name in engines if name in tables]
    if not order:
        return None
    first, second, third = document["tflops"]
    return Kernels(
        bandwidth_gb_s=document["bandwidth_gb_s"],
        tflops=(first, second, third),
        products=_curves(order, "products"),
        experts=_curves(order, "experts"),
        attention=_lines(order, "attention"),
        latent=_lines(order, "latent"),
        source=document["source"],
    )


def _curves(tables: Sequence[Mapping[str, Any]], part: str) -> dict[str, Curve]:
    return {name: _curve(points) for name, points in _first(tables, part)}


def _curve(points: Sequence[Sequence[float]]) -> Curve:
    return Curve(
        logs=tuple(math.log(rows) for rows, _, _ in points),
        call_us=tuple(call for _, call, _ in points),
        share=tuple(share for _, _, share in points),
    )


def _lines(tables: Sequence[Mapping[str, Any]], part: str) -> dict[str, Line]:
    return {name: (call, first, second) for name, (call, first, second) in _first(tables, part)}


def _first(tables: Sequence[Mapping[str, Any]], part: str) -> Iterator[tuple[str, Any]]:
    """What the first table with it says; an empty entry: the device has constants of its own."""
    names = dict.fromkeys(name for table in tables for name in table[part])
    for name in names:
        found = next(table[part][name] for table in tables if name in table[part])
        if found:
            yield name, found
