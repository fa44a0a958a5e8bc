"""A predicted latency (``weft.prediction/1``)."""

from __future__ import annotations

from collections.abc import Iterator

from weft.report import figures
from weft.report.blocks import Answer, Block, Chart, Facts, Headline, Section, Table
from weft.report.node import Node
from weft.report.rows import layout_name
from weft.report.text import number

_PARTS = ("matmul", "attention", "elementwise", "fixed", "communication", "waiting")
_TIMES = (
    ("TTFT", "ttft_ms", "ms"),
    ("TPOT", "tpot_ms", "ms"),
    ("throughput", "tokens_per_s", "tokens/s"),
)


def title(prediction: Node) -> str:
    model, engine = prediction["model"].text(), prediction["engine"].text()
    return f"{model} · {layout_name(prediction['layout'])} · {engine}, predicted"


def answer(prediction: Node) -> Answer:
    """Latency with its intervals, and whether the model fits."""
    ttft, tpot = (estimate_text(prediction[key], "ms") for key in ("ttft_ms", "tpot_ms"))
    share = prediction["communication_share"].number()
    fits = prediction["memory"].value is None or prediction["memory.fits"].value is not False
    return Answer(
        summary=f"TTFT {ttft}, TPOT {tpot}, {share:.0%} of the time is communication",
        headlines=[
            *(headline(name, prediction[key], unit) for name, key, unit in _TIMES),
            Headline(label="communication", value=f"{share:.0%}", note="of the time"),
        ],
        warnings=() if fits else ["the model does not fit the memory of one GPU"],
    )


def headline(name: str, quantity: Node, unit: str) -> Headline:
    """An estimate, with its interval below it."""
    value, _, interval = estimate_text(quantity, unit).partition(" (")
    return Headline(label=name, value=value, note=interval.removesuffix(")"))


def estimate_value(quantity: Node) -> float:
    """A number, or the value of ``{"value", "low", "high"}``."""
    return (quantity["value"] if isinstance(quantity.value, dict) else quantity).number()


def estimate_text(quantity: Node, unit: str) -> str:
    """The value with its interval, if it has one."""
    text = f"{number(round(estimate_value(quantity), 3))} {unit}"
    if isinstance(quantity.value, dict) and "low" in quantity and "high" in quantity:
        low, high = quantity["low"].number(), quantity["high"].number()
        return f"{text} ({number(round(low, 3))} to {number(round(high, 3))})"
    return text


def sections(prediction: Node) -> list[Section]:
    """Where the time goes, memory, and every input with its source."""
    inputs = [{"input": name, **row.cells()} for name, row in prediction["provenance"].items()]
    table = Table(caption="Every input of the time model", rows=inputs, folded=True)
    whole = estimate_text(prediction["e2e_ms"], "ms")
    machine = prediction.cells("accelerator", "fabric")
    return [
        Section(
            title="Latency",
            blocks=[
                *_times(prediction),
                Facts(items={"E2E": whole, **prediction["workload"].cells(), **machine}),
            ],
        ),
        Section(title="Memory of one GPU", blocks=[Facts(items=prediction["memory"].cells())]),
        Section(title="Inputs", blocks=[table]),
    ]


def _times(prediction: Node) -> Iterator[Block]:
    for phase, name in (("decode", "One decode step"), ("prefill", "Prefill")):
        parts = {part: prediction[f"{phase}.{part}_ms"].number() for part in _PARTS}
        figure = figures.stacked_bars({phase: parts}, x_title="time (ms)")
        yield Chart(title=f"{name}: where the time goes", figure=figure)
    rows = [
        {"phase": phase, **row.cells()}
        for phase in ("prefill", "decode")
        for row in prediction[f"{phase}.collectives"].elements()
    ]
    if rows:
        yield Table(caption="Collectives of one step", rows=rows)
