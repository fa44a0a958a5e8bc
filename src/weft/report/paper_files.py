"""A study's figures as files for a paper: SVG by matplotlib (extra ``figures``), CSV of the numbers."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import plotly.graph_objects as go

from weft.report.engines_document import read_study
from weft.report.engines_figures import PaperFigure, paper_figures
from weft.report.node import Node


def paper_files(study: Node) -> Iterator[tuple[str, str]]:
    """(file name, content) of every figure; SVG only where matplotlib is installed."""
    drawable = find_spec("matplotlib") is not None
    for one in paper_figures(read_study(study)):
        yield f"{one.name}.csv", _table(one)
        if drawable:
            yield f"{one.name}.svg", svg(one.figure, one.title)


def _table(one: PaperFigure) -> str:
    names = list(dict.fromkeys(name for row in one.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.rows)
    return text.getvalue()


def svg(figure: go.Figure, title: str) -> str:
    """The bars and lines of a figure of weft's as SVG text."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}):
        page = Figure(figsize=(6, 3.4), layout="constrained")
        axes = page.subplots()
        for place, trace in enumerate(figure.data):
            draw = _line if trace.type == "scatter" else _bars
            draw(axes, figure, place)
        _dress(axes, figure, title)
        text = io.StringIO()
        page.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()


def _line(axes: Any, figure: go.Figure, place: int) -> None:
    trace = figure.data[place]
    axes.plot(trace.x, trace.y, "o-", ms=4, color=trace.line.color, label=_plain(trace.name))


def _bars(axes: Any, figure: go.Figure, place: int) -> None:
    trace, before = figure.data[place], figure.data[:place]
    lying = trace.orientation == "h"
    names, sizes = (trace.y, trace.x) if lying else (trace.x, trace.y)
    style = {"color": trace.marker.color, "label": _plain(trace.name)}
    places = [_plain(name) if isinstance(name, str) else name for name in names]
    if lying:
        starts = [sum(one.x[index] for one in before) for index in range(len(sizes))]
        axes.barh(places, sizes, left=starts, **style)
    elif trace.width is not None:
        lefts = [x + offset for x, offset in zip(places, trace.offset, strict=True)]
        axes.bar(lefts, sizes, trace.width, align="edge", **style)
    else:
        every = list(dict.fromkeys(name for one in figure.data for name in one.x))
        width = 0.8 / len(figure.data)
        lefts = [every.index(name) - 0.4 + width * place for name in names]
        axes.bar(lefts, sizes, width, align="edge", **style)
        axes.set_xticks(range(len(every)), [_plain(name) for name in every])


def _dress(axes: Any, figure: go.Figure, title: str) -> None:
    """Title, axes and legend as the page has them."""
    layout = figure.layout
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(_plain(layout.xaxis.title.text))
    axes.set_ylabel(_plain(layout.yaxis.title.text))
    for name, axis in (("x", layout.xaxis), ("y", layout.yaxis)):
        if axis.type == "log":
            getattr(axes, f"set_{name}scale")("log")
        if axis.tickvals:
            getattr(axes, f"set_{name}ticks")(axis.tickvals, axis.ticktext, fontsize=7)
    if layout.yaxis.autorange == "reversed":
        axes.invert_yaxis()
    if len(figure.data) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str | None) -> str:
    return html.unescape(text or "")
