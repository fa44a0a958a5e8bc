"""Tables: alignment, verdicts, empty and folded ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.report import Badge, Facts, Table, verdict_badge
from weft.report.tables import cell_html, facts_html, table_html
from weft.report.text import binary_bytes, decimal_bytes, number


def test_numbers_stand_right_and_text_left() -> None:
    html = table_html(
        Table(
            caption="c",
            rows=[{"op": "send", "count": 254, "wait_us": None}, {"op": "recv", "count": 2.5}],
        )
    )
    assert '<th scope="col">op</th>' in html
    assert '<th scope="col" class="number">count</th>' in html
    assert '<td class="number">254</td>' in html
    assert '<th scope="col">wait (µs)</th>' in html
    assert 'class="scroll" role="region" tabindex="0" aria-label="c"' in html


def test_truth_values_are_not_numbers() -> None:
    html = table_html(Table(caption="c", rows=[{"fits": True}, {"fits": False}]))
    assert "number" not in html
    assert "<td>yes</td>" in html
    assert "<td>no</td>" in html


def test_long_text_may_wrap() -> None:
    assert '<td class="long">' in table_html(Table(caption="c", rows=[{"reason": "word " * 20}]))


def test_empty_table_says_so() -> None:
    assert "No rows." in table_html(Table(caption="c", rows=[]))


def test_folded_table_counts_its_rows() -> None:
    html = table_html(Table(caption="c", rows=[{"a": 1}, {"a": 2}], folded=True))
    assert html.startswith("<details><summary>c <small>2 rows</small>")


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
    assert f'class="badge {tone}"' in cell_html(verdict_badge(verdict))


def test_facts_name_their_units() -> None:
    html = facts_html(Facts(items={"memory_gib": 24, "cpu": None}))
    assert "<dt>memory (GiB)</dt><dd>24</dd>" in html
    assert "–" in html


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
