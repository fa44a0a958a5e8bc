"""Times that a calibration writes: noise taken out, never below what order allows."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.bench.calibration import _never_falling

times = st.lists(st.floats(1.0, 1e6), min_size=1, max_size=12)


def distance(one, other):
    return sum((math.log(a) - math.log(b)) ** 2 for a, b in zip(one, other, strict=True))


@given(times)
def test_times_never_fall_and_keep_their_mean(values):
    smooth = _never_falling(values)
    assert all(a <= b for a, b in itertools.pairwise(smooth))
    assert sum(map(math.log, smooth)) == pytest.approx(sum(map(math.log, values)), abs=0.1)


@given(times)
def test_times_that_do_not_fall_stay(values):
    assert _never_falling(sorted(values)) == pytest.approx(sorted(values), abs=0.01)


@given(times, st.data())
def test_no_other_order_is_nearer(values, data):
    other = sorted(
        data.draw(st.lists(st.floats(1.0, 1e6), min_size=len(values), max_size=len(values)))
    )
    assert distance(values, _never_falling(values)) <= distance(values, other) + 0.1
