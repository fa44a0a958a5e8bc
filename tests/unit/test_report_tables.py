"""Tables: alignment, verdicts, empty and folded ones."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.report import Answer, Badge, Block, Facts, Report, Section, Table, render, verdict_badge
from weft.report.text import binary_bytes, decimal_bytes, number


def html(block: Block) -> str:
    """The block in a page, each run of white space as one blank."""
    section = Section(title="only section", blocks=[block])
    page = render(Report(title="t", answer=Answer(summary="s"), sections=[section]))
    return " ".join(page.partition("only section</h2>")[2].split())


def test_numbers_stand_right_and_text_left() -> None:
    rows = [{"op": "send", "count": 254, "wait_us": None}, {"op": "recv", "count": 2.5}]
    shown = html(Table(caption="c", rows=rows))
    assert '<th scope="col" class="text">op</th>' in shown
    assert '<th scope="col" class="number">count</th>' in shown
    assert re.search(r'<td class="number" data-head="count"> ?254 ?</td>', shown)
    assert '<th scope="col" class="text">wait (µs)</th>' in shown
    assert 'class="scroll" role="region" tabindex="0" aria-label="c"' in shown


def test_truth_values_are_not_numbers() -> None:
    shown = html(Table(caption="c", rows=[{"fits": True}, {"fits": False}]))
    assert "number" not in shown
    assert re.findall(r"> ?(yes|no) ?</td>", shown) == ["yes", "no"]


def test_empty_table_says_so() -> None:
    assert "No rows." in html(Table(caption="c", rows=[]))
    assert "No rows." in html(Table(caption="c", rows=[], folded=True))


def test_folded_table_counts_its_rows() -> None:
    shown = html(Table(caption="c", rows=[{"a": 1}, {"a": 2}], folded=True))
    assert "<details><summary>c <small>2 rows</small>" in shown


@pytest.mark.parametrize(
    ("verdict", "tone"),
    [
        ("equal", "good"),
        ("ok", "good"),
        ("passed", "good"),
        ("different", "bad"),
        ("missing", "bad"),
        ("surplus", "bad"),
        ("wrong", "bad"),
        ("failed", "bad"),
        ("unknown", "neutral"),
    ],
)
def test_verdict_tones(verdict: str, tone: str) -> None:
    assert verdict_badge(verdict) == Badge(text=verdict, tone=tone)  # type: ignore[arg-type]
    assert f'class="badge {tone}"' in html(Facts(items={"v": verdict_badge(verdict)}))


def test_facts_name_their_units() -> None:
    shown = html(Facts(items={"memory_gib": 24, "cpu": None}))
    assert re.search("<dt>memory .GiB.</dt><dd> ?24 ?</dd>", shown)
    assert "–" in shown


@given(st.integers(-(10**14), 10**14))
def test_integers_keep_every_digit(value: int) -> None:
    assert int(number(value).replace(",", "")) == value
    assert int(number(float(value)).replace(",", "")) == value


@given(st.floats(1e-6, 1e14))
def test_fractions_keep_four_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("size", "decimal", "binary"),
    [
        (0, "0 B", "0 B"),
        (999, "999 B", "999 B"),
        (8192, "8.192 kB", "8 KiB"),
        (1048576, "1.049 MB", "1 MiB"),
        (5e15, "5,000 TB", "4,547 TiB"),
    ],
)
def test_byte_units(size: float, decimal: str, binary: str) -> None:
    assert decimal_bytes(size) == decimal
    assert binary_bytes(size) == binary
