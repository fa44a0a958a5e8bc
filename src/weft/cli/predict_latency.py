"""Tables of a predicted latency: times with intervals, parts, collectives, memory, sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from weft.cli.output import OutputFormat, print_rows
from weft.prediction.prediction import PARTS, Machine, Prediction, provenance
from weft.prediction.quantity import Estimate
from weft.prediction.serving import Serving


def print_times(
    found: Prediction | Serving, output_format: OutputFormat, *, inputs: bool = False
) -> None:
    """Print a batch's times or a server's; the first line says so where it does not fit."""
    if isinstance(found, Serving):
        _print_serving(found, output_format)
        machine = found.machine
    else:
        _print_batch(found, output_format)
        machine = found.machine
    if output_format is OutputFormat.TABLE:
        if inputs:
            print_rows(list(_sources(machine)), output_format, title="Inputs")
        else:
            print(_sources_summary(machine))


def _print_batch(prediction: Prediction, output_format: OutputFormat) -> None:
    if output_format is not OutputFormat.TABLE:
        rows = [{"quantity": key} | value for key, value in _estimates(prediction)]
        print_rows(rows, output_format, document=prediction.to_dict())
        return
    machine = prediction.machine
    title = (
        f"{prediction.spec.name} · {prediction.layout.name} · engine {machine.profile.name} · "
        f"{machine.accelerator.name} · {machine.fabric.name} (90 % intervals)"
    )
    if not prediction.memory.fits:
        print(f"DOES NOT FIT: {prediction.memory.shortage}")
    print_rows([{"quantity": k} | v for k, v in _estimates(prediction)], output_format, title=title)
    print_rows(list(_parts(prediction)), output_format, title="Where the time goes (ms)")
    collectives = list(_collectives(prediction))
    if collectives:
        print_rows(collectives, output_format, title="Collectives of the critical path")
    print_rows(list(_memory(prediction)), output_format, title="Memory of the fullest GPU")


def _estimates(prediction: Prediction) -> Iterator[tuple[str, dict[str, float]]]:
    for name in ("ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s"):
        estimate: Estimate = getattr(prediction, name)
        yield name, {key: _round(value) for key, value in estimate.to_dict().items()}


def _parts(prediction: Prediction) -> Iterator[dict[str, Any]]:
    for phase in ("prefill", "decode"):
        times = getattr(prediction, phase)
        label = phase if phase == "prefill" else "decode step"
        yield {"phase": label} | {
            part: _round(getattr(times, f"{part}_ms")) for part in (*PARTS, "total")
        }


def _collectives(prediction: Prediction) -> Iterator[dict[str, Any]]:
    for phase in ("prefill", "decode"):
        times = getattr(prediction, phase)
        for item in times.collectives:
            yield {
                "phase": phase if phase == "prefill" else "decode step",
                "op": item.op,
                "group": item.group,
                "count": item.count,
                "bytes": item.message_bytes,
                "algorithm": item.algorithm,
                "us_per_call": _round(item.time_us / item.count),
                "share": f"{100 * item.time_us * 1e-3 / times.total_ms:.1f} %",
            }


def _memory(prediction: Prediction) -> Iterator[dict[str, Any]]:
    names = ("weights_gb", "cache_gb", "activations_gb", "buffers_gb", "total_gb", "limit_gb")
    memory = prediction.memory
    yield {name: _round(getattr(memory, name)) for name in names} | {
        "cache_room_tokens": memory.cache_limit_tokens
    }


def _sources(machine: Machine) -> Iterator[dict[str, Any]]:
    for name, row in provenance(machine).items():
        spread = row["spread"]
        yield {
            "input": name,
            "value": row["value"],
            "spread": None if spread is None else f"{100 * spread:.0f} %",
            "origin": row["origin"],
            "source": row["source"],
        }


def _sources_summary(machine: Machine) -> str:
    counts = Counter(row["origin"] for row in provenance(machine).values())
    parts = ", ".join(f"{count} {origin}" for origin, count in counts.most_common())
    return f"inputs: {parts} (--inputs lists them with their sources)"


def _print_serving(serving: Serving, output_format: OutputFormat) -> None:
    """What clients of a server see: means with intervals, percentiles, rates."""
    rows = [
        {"quantity": name} | {key: _round(value) for key, value in times.to_dict().items()}
        for name, times in (
            ("ttft_ms", serving.ttft_ms),
            ("tpot_ms", serving.tpot_ms),
            ("e2e_ms", serving.e2e_ms),
        )
    ]
    title = (
        f"{serving.spec.name} · {serving.layout.name} · {serving.machine.profile.name} serving · "
        f"{serving.machine.accelerator.name} · {serving.machine.fabric.name} (mean, 90 % interval)"
    )
    print_rows(rows, output_format, title=title, document=serving.to_dict())
    if output_format is OutputFormat.TABLE:
        print(
            f"{serving.requests_per_s:.4g} requests/s, {serving.tokens_per_s:.5g} tokens/s, at most "
            f"{serving.running:g} decoding, {100 * serving.prefill_share:.0f} % of the time with "
            f"prompts, {serving.preemptions} preempted"
        )


def _round(value: float) -> float:
    return float(f"{value:.4g}")
