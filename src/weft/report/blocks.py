"""What a report is made of: an answer, then sections that hold prose, facts, tables and charts.

Every text is plain text; the page escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from weft.report.drawing import Figure

Tone = Literal["good", "bad", "neutral"]

_BAD_WORDS: Final = ("different", "missing", "surplus", "wrong", "failed")


@dataclass(frozen=True, kw_only=True)
class Badge:
    """A short word in a coloured frame: a verdict."""

    text: str
    tone: Tone = "neutral"


Cell = str | int | float | bool | Badge | None
Row = Mapping[str, Cell]


def verdict_badge(verdict: str) -> Badge:
    """Good for ``equal`` and ``ok``, bad for the ways to differ, else neutral."""
    if verdict in ("equal", "ok", "passed"):
        return Badge(text=verdict, tone="good")
    return Badge(text=verdict, tone="bad" if verdict in _BAD_WORDS else "neutral")


@dataclass(frozen=True, kw_only=True)
class Prose:
    """One paragraph."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names with values, e.g. the machine."""

    items: Row


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with equal keys in equal order; the keys are the column heads.

    Columns of numbers are set to the right. ``folded`` hides the rows behind the
    caption until the reader opens it.
    """

    caption: str
    rows: Sequence[Row]
    note: str | None = None
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure under its title; ``note`` says how to read it."""

    title: str
    figure: Figure
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Blocks that are there for who looks for them."""

    title: str
    blocks: Sequence[Block]


Block = Prose | Facts | Table | Chart | Folded


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One large figure of the answer: what it is, its value with unit, and what to hold it against."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "neutral"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a reader came for: a verdict, one sentence, at most four figures, and what to beware of."""

    summary: str
    verdict: Badge | None = None
    headlines: Sequence[Headline] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole page."""

    title: str
    answer: Answer
    sections: Sequence[Section] = field(default=())
