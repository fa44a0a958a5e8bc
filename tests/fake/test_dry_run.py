"""Dry run and closed form agree exactly, for any model, layout, engine and workload."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.closed_form.schedule import closed_form
from weft.tracing.dry_run import dry_run
from weft.vocabulary.comparison import compare
from weft.vocabulary.conventions import ENGINES
from weft.vocabulary.families import BUILTIN_MODELS
from weft.vocabulary.layout import Layout, valid_tp
from weft.vocabulary.model_spec import ModelSpec
from weft.vocabulary.workload import Workload


def assert_same(spec, layout, workload, engine):
    formula, dry = (
        closed_form(spec, layout, workload, engine),
        dry_run(spec, layout, workload, engine),
    )
    wrong = [row for row in compare(formula, dry) if row.verdict != "equal"]
    assert not wrong, wrong[0]
    assert formula.totals == dry.totals


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "layout", ["1", "tp2", "tp4", "tp8", "pp2", "pp4", "tp2xpp2", "tp4xpp3", "sp2", "sp4xpp2"]
)
def test_true_models(engine, layout):
    for name in ("llama-3.1-8b", "qwen2.5-7b"):
        spec = BUILTIN_MODELS[name]
        if Layout.parse(layout).tp not in valid_tp(spec):
            continue
        assert_same(spec, Layout.parse(layout), Workload(), engine)


@st.composite
def cases(draw):
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3]))
    head_dim = draw(st.sampled_from([2, 8]))
    spec = ModelSpec(
        name="random",
        num_layers=draw(st.integers(1, 6)),
        hidden_size=heads * draw(st.sampled_from([4, 8])),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=heads * draw(st.integers(1, 4)),
        vocab_size=draw(st.integers(2, 300)),
        tie_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "bfloat16"])),
    )
    tp = draw(st.sampled_from(valid_tp(spec)))
    layout = Layout(
        tp=tp,
        pp=draw(st.integers(1, spec.num_layers)),
        sp=draw(st.sampled_from([1, tp])),
        dp=draw(st.sampled_from([1, 2])),
    )
    workload = Workload(
        prompt_tokens=draw(st.integers(1, 40)),
        decode_tokens=draw(st.integers(1, 40)),
        batch=draw(st.integers(1, 5)),
    )
    return spec, layout, workload, draw(st.sampled_from(sorted(ENGINES)))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_random_models(case):
    assert_same(*case)


def test_a_row_says_what_its_calls_are_fused_with():
    dry = dry_run(BUILTIN_MODELS["llama-3.1-8b"], Layout(tp=2), Workload())
    fused = {(row.phase, row.op): row.fused for row in dry.collectives}
    assert fused == {
        ("prefill", "all_reduce"): "residual_rms_norm",
        ("prefill", "all_gather"): None,
        ("decode", "all_reduce"): "residual_rms_norm",
        ("decode", "all_gather"): None,
    }
