"""Sections from a predicted latency (``weft.prediction/1``)."""

from __future__ import annotations

from weft.report import figures
from weft.report.blocks import Block, Cell, Chart, Facts, Section, Table
from weft.report.node import Node
from weft.report.rows import layout_name
from weft.report.text import number

_PARTS = ("matmul", "attention", "elementwise", "fixed", "communication", "waiting")


def prediction_title(prediction: Node) -> str:
    model = prediction.child("model").text()
    engine = prediction.child("engine").text()
    return f"{model} · {layout_name(prediction.child('layout'))} · {engine}, predicted"


def prediction_summary(prediction: Node) -> str:
    ttft, tpot = (estimate_text(prediction.child(key), "ms") for key in ("ttft_ms", "tpot_ms"))
    share = prediction.child("communication_share").number()
    return f"TTFT {ttft}, TPOT {tpot}, {share:.0%} of the time is communication"


def estimate_value(quantity: Node) -> float:
    """A number, or the value of ``{"value", "low", "high"}``."""
    node = quantity.child("value") if isinstance(quantity.value, dict) else quantity
    return node.number()


def estimate_text(quantity: Node, unit: str) -> str:
    """The value with its interval, if it has one."""
    text = f"{number(round(estimate_value(quantity), 3))} {unit}"
    if isinstance(quantity.value, dict) and "low" in quantity and "high" in quantity:
        low, high = quantity.child("low").number(), quantity.child("high").number()
        return f"{text} ({number(round(low, 3))} to {number(round(high, 3))})"
    return text


def sections_of_prediction(prediction: Node) -> list[Section]:
    """Latency with intervals, where the time goes, memory, and every input with its source."""
    memory = {key: node.cell() for key, node in prediction.child("memory").items()}
    return [
        Section(title="Latency", blocks=[Facts(items=_facts(prediction)), *_times(prediction)]),
        Section(title="Memory of one GPU", blocks=[Facts(items=memory)]),
        Section(title="Inputs", blocks=[_inputs(prediction)]),
    ]


def _facts(prediction: Node) -> dict[str, Cell]:
    times: dict[str, Cell] = {
        name: estimate_text(prediction.child(key), unit)
        for name, key, unit in (
            ("TTFT", "ttft_ms", "ms"),
            ("TPOT", "tpot_ms", "ms"),
            ("E2E", "e2e_ms", "ms"),
            ("throughput", "tokens_per_s", "tokens/s"),
        )
    }
    workload = {key: node.cell() for key, node in prediction.child("workload").items()}
    machine = {key: prediction.child(key).cell() for key in ("accelerator", "fabric")}
    return {**times, **workload, **machine}


def _times(prediction: Node) -> list[Block]:
    blocks: list[Block] = []
    for phase, title in (("decode", "One decode step"), ("prefill", "Prefill")):
        node = prediction.child(phase)
        parts = {part: node.child(f"{part}_ms").number() for part in _PARTS}
        figure = figures.stacked_bars({phase: parts}, x_title="time (ms)")
        blocks.append(Chart(title=f"{title}: where the time goes", figure=figure))
    rows: list[dict[str, Cell]] = [
        {"phase": phase, **{key: cell.cell() for key, cell in row.items()}}
        for phase in ("prefill", "decode")
        for row in prediction.child(phase).child("collectives").elements()
    ]
    return [*blocks, Table(caption="Collectives of one step", rows=rows)] if rows else blocks


def _inputs(prediction: Node) -> Table:
    rows: list[dict[str, Cell]] = [
        {"input": name, **{key: cell.cell() for key, cell in row.items()}}
        for name, row in prediction.child("provenance").items()
    ]
    return Table(caption="Every input of the time model", rows=rows, folded=True)
