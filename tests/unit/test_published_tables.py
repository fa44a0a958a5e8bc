"""Every entry of the published tables, and the laws that the text states."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.closed_form.schedule import closed_form
from weft.study.published import ENGINE, PUBLISHED, WORKLOAD
from weft.tracing.dry_run import dry_run
from weft.vocabulary.families import BUILTIN_MODELS
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload

PAPER_MODELS = ("llama-3.2-3b", "llama-3.1-8b", "llama-2-13b")


@pytest.mark.parametrize("source", [closed_form, dry_run])
@pytest.mark.parametrize("key", sorted({(e.model, e.layout) for e in PUBLISHED}))
def test_every_published_entry(source, key):
    model, layout = key
    schedule = source(BUILTIN_MODELS[model], Layout.parse(layout), WORKLOAD, ENGINE)
    for entry in PUBLISHED:
        if (entry.model, entry.layout) == key:
            assert entry.count_in(schedule) == entry.count, entry


def volume(model, layout, decode=128, prompt=128, batch=1):
    workload = Workload(prompt_tokens=prompt, decode_tokens=decode, batch=batch)
    spec = BUILTIN_MODELS[model]
    by_op = closed_form(spec, Layout.parse(layout), workload, ENGINE).totals.by_op
    return sum(size for op, size in by_op.items() if op != "gather")


@pytest.mark.parametrize("model", PAPER_MODELS)
@pytest.mark.parametrize("layout", ["tp4", "pp4", "tp2xpp2"])
def test_growth_with_decode_length(model, layout):
    """1.50 and 1.67 times per doubling, without the logits, which grow with decode alone."""
    short, middle, long = (volume(model, layout, decode) for decode in (128, 256, 512))
    assert middle / short == pytest.approx(1.5, abs=0.005)
    assert long / middle == pytest.approx(5 / 3, abs=0.005)


@pytest.mark.parametrize("model", PAPER_MODELS)
def test_order_of_layouts_on_four_gpus(model):
    assert volume(model, "tp4") > volume(model, "tp2xpp2") > volume(model, "pp4")


@given(
    st.sampled_from(PAPER_MODELS),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 8),
)
def test_volume_formulas(model, t, p, s_p, s_d, batch):
    """The formulas of the text, written down a second time."""
    spec = BUILTIN_MODELS[model]
    layout = Layout(tp=t, pp=p)
    got = closed_form(
        spec, layout, Workload(prompt_tokens=s_p, decode_tokens=s_d, batch=batch), ENGINE
    ).totals
    h, v, b = spec.hidden_size, spec.vocab_size, 2
    rows = batch * (s_p + s_d - 1)
    first_layers = len(layout.layers_of_stages(spec.num_layers)[0])
    expected = {
        "all_reduce": (2 * first_layers + 1) * rows * h * b * 2 * (t - 1) / t,
        "all_gather": 2 * (p - 1) * rows * h * b * (t - 1) / t,
        "gather": batch * s_d * (v / t) * b if t > 1 else 0,
        "send": 2 * (p - 1) * rows * (h / t) * b,
    }
    for op, value in expected.items():
        assert got.by_op.get(op, 0) == pytest.approx(value), op
    assert got.volume_bytes == pytest.approx(math.fsum(expected.values()))
    assert sum(got.by_phase.values()) == pytest.approx(got.volume_bytes)
