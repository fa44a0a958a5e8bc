"""Expert parallelism: dry run and closed form agree exactly; what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.closed_form.schedule import closed_form
from weft.errors import LayoutError
from weft.tracing.dry_run import dry_run
from weft.vocabulary.comparison import compare
from weft.vocabulary.dtypes import element_bytes
from weft.vocabulary.families import BUILTIN_MODELS
from weft.vocabulary.layout import Layout
from weft.vocabulary.workload import Workload

MIXTRAL = replace(BUILTIN_MODELS["mixtral-8x7b"], num_layers=4)
QWEN = replace(BUILTIN_MODELS["qwen3-30b-a3b"], num_layers=3)


@pytest.mark.parametrize(
    "layout",
    ["tp2", "tp2xep2", "tp4xep2", "tp4xep4", "tp2xpp2xep2", "sp2xep2", "sp4xpp3xep4", "dp2xep2"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_closed_form_and_dry_run(layout, batch):
    workload = Workload(prompt_tokens=7, decode_tokens=5, batch=batch)
    for spec in (MIXTRAL, QWEN):
        formula = closed_form(spec, Layout.parse(layout), workload)
        dry = dry_run(spec, Layout.parse(layout), workload)
        assert not [row for row in compare(formula, dry) if row.verdict != "equal"]
        moved = {row.op for row in formula.collectives}
        assert ("all_to_all" in moved) == ("ep" in layout)


@pytest.mark.parametrize("layout", ["1", "tp2", "pp2", "tp4xpp2", "tp4xep4", "sp2xep2"])
@pytest.mark.parametrize("engine", ["weft", "vllm"])
@pytest.mark.parametrize(
    "name",
    [
        "gemma-3-27b",
        "deepseek-v2",
        "deepseek-v3",
        "kimi-k2",
        "glm-4.5",
        "qwen3-next-80b-a3b",
        "qwen3.5-27b",
        "gpt-oss-20b",
        "minimax-m2",
        "llama-4-maverick",
    ],
)
def test_models_of_other_parts(name, layout, engine):
    spec, parsed = replace(BUILTIN_MODELS[name], num_layers=5), Layout.parse(layout)
    if (parsed.ep > 1 and not spec.is_moe) or (parsed.sp > 1 and engine != "weft"):
        return
    workload = Workload(prompt_tokens=7, decode_tokens=5, batch=3)
    formula, dry = (make(spec, parsed, workload, engine) for make in (closed_form, dry_run))
    assert not [row for row in compare(formula, dry) if row.verdict != "equal"]
    assert len(formula.collectives) == len(dry.collectives)


@pytest.mark.parametrize("layout", ["tp2xep2", "tp4xpp2xep4", "sp2xep2"])
def test_engines_that_add_up(layout):
    workload = Workload(prompt_tokens=7, decode_tokens=5, batch=3)
    with_experts = Layout.parse(layout)
    formula = closed_form(MIXTRAL, with_experts, workload, "vllm")
    dry = dry_run(MIXTRAL, with_experts, workload, "vllm")
    assert not [row for row in compare(formula, dry) if row.verdict != "equal"]
    assert (
        formula.collectives
        == closed_form(MIXTRAL, replace(with_experts, ep=1), workload, "vllm").collectives
    )


def test_vllm_gathers_rows_of_all_replicas():
    """Sizes of AgRsAll2AllManager: rows, weights and ids to all, outputs summed back."""
    load, layout = Workload(prompt_tokens=6, decode_tokens=1), Layout(tp=2, dp=2, ep=4)
    formula, dry = (make(MIXTRAL, layout, load, "vllm") for make in (closed_form, dry_run))
    assert not [row for row in compare(formula, dry) if row.verdict != "equal"]
    rows = {
        (row.op, row.input_shape, row.dtype): row.count
        for row in formula.collectives
        if row.group == "ep"
    }
    assert rows == {
        ("all_gather", (3, 4096), "bfloat16"): 4,
        ("all_gather", (3, 2), "float32"): 4,
        ("all_gather", (3, 2), "int32"): 4,
        ("reduce_scatter", (12, 4096), "bfloat16"): 4,
    }
    for make in (closed_form, dry_run):
        with pytest.raises(LayoutError, match="engine trtllm adds up its experts"):
            make(MIXTRAL, layout, load, "trtllm")


DEEPSEEK = replace(BUILTIN_MODELS["deepseek-v2"], num_layers=5)


def both_ways(spec, layout, load, engine):
    """Rows over all replicas, (phase, op, shape of the input): calls, equal in both ways."""
    formula, dry = (make(spec, layout, load, engine) for make in (closed_form, dry_run))
    assert not [row for row in compare(formula, dry) if row.verdict != "equal"]
    return {
        (row.phase, row.variant or row.op, row.input_shape): row.count
        for row in formula.collectives
        if row.group == "ep"
    }


def test_sglang_puts_the_rows_of_all_replicas_together():
    """dp_attention.py: prompts by a sum (SUM_LEN), decodes on two nodes by shares (MAX_LEN)."""
    load = Workload(prompt_tokens=5, decode_tokens=2, batch=2)
    layout = Layout(tp=2, dp=2, ep=4, nodes=2)
    prompts = {
        ("prefill", "all_reduce", (12, 5120)): 2 * 5,  # 5 rows and one of padding, twice
        ("prefill", "all_reduce", (2, 5120)): 1,  # those whose logits are wanted
        ("prefill", "all_gather", (2, 25600)): 1,
    }
    logits = {
        ("decode", "all_reduce", (2, 5120)): 1,
        ("decode", "all_gather", (2, 25600)): 1,
    }
    shares = {
        ("decode", "all_gather", (1, 5120)): 5,
        ("decode", "reduce_scatter", (4, 5120)): 5,
    }
    assert both_ways(DEEPSEEK, layout, load, "sglang") == prompts | logits | shares
    sums = {("decode", "all_reduce", (4, 5120)): 2 * 5}
    found = both_ways(DEEPSEEK, replace(layout, nodes=1), load, "sglang")
    assert found == prompts | logits | sums


def test_sglang_gathers_where_a_sum_is_too_large():
    load = Workload(prompt_tokens=1, decode_tokens=2, batch=2 * 1024)
    found = both_ways(DEEPSEEK, Layout(dp=2, ep=2), load, "sglang")
    assert found["decode", "all_gather", (1024, 5120)] == 5  # 20 MiB; 16 are summed


def test_deepep_sends_at_most_its_buffers():
    """Low latency: a message a choice (6 of a row); high throughput: a row once a rank."""
    load = Workload(prompt_tokens=6, decode_tokens=2, batch=4)
    layout = Layout(dp=4, ep=4)
    quick = both_ways(DEEPSEEK, layout, load, "vllm-deepep")
    assert quick == {
        ("prefill", "deepep_dispatch", (6 * 6, 16 + 2 * 5120)): 4,
        ("prefill", "deepep_combine", (6 * 6, 5120)): 4,
        ("decode", "deepep_dispatch", (6, 16 + 2 * 5120)): 4,
        ("decode", "deepep_combine", (6, 5120)): 4,
    }
    wide = both_ways(DEEPSEEK, layout, load, "vllm-deepep-ht")
    assert wide["prefill", "deepep_dispatch", (6 * 4, 12 * 6 + 2 * 5120)] == 4
    eight = both_ways(DEEPSEEK.stored_as("fp8_block"), layout, load, "vllm-deepep")
    assert eight["decode", "deepep_dispatch", (6, 16 + 5120 + 4 * 40)] == 4
    auto = both_ways(DEEPSEEK, layout, load, "sglang-deepep")
    assert auto["prefill", "deepep_dispatch", (6 * 4, 12 * 6 + 2 * 5120)] == 4
    assert auto["decode", "deepep_combine", (6, 5120)] == 4
    assert auto["prefill", "all_reduce", (24, 5120)] == 2  # the dense layer, of all replicas
    rows = closed_form(DEEPSEEK, layout, load, "vllm-deepep").collectives
    assert {row.bound for row in rows if row.variant} == {"upper"}


def test_what_sglang_cannot_join_is_refused():
    load = Workload(prompt_tokens=6, decode_tokens=1)
    with pytest.raises(LayoutError, match="`tp` 2: with DeepEP"):
        closed_form(DEEPSEEK, Layout(tp=2, dp=2, ep=4), load, "sglang-deepep")
    odd = replace(DEEPSEEK, intermediate_size=12287)
    with pytest.raises(LayoutError, match="12287 inner elements"):
        closed_form(odd, Layout(dp=4, ep=4), load, "sglang")
    with pytest.raises(LayoutError, match="`sp` 2: engine sglang"):
        closed_form(DEEPSEEK, Layout(tp=2, sp=2, dp=2, ep=4), load, "sglang")


def test_vllm_scatters_rows_of_latent_attention_before_experts():
    """DeepseekV2DecoderLayer with use_sequence_parallel_moe: one dense layer, four of experts."""
    deepseek = replace(BUILTIN_MODELS["deepseek-v2"], num_layers=5)
    load = Workload(prompt_tokens=5, decode_tokens=1, batch=2)
    for layout in (Layout(tp=2, dp=2, ep=4), Layout(tp=4, dp=2, ep=8), Layout(dp=4, ep=4)):
        formula, dry = (make(deepseek, layout, load, "vllm") for make in (closed_form, dry_run))
        assert not [row for row in compare(formula, dry) if row.verdict != "equal"]
    formula = closed_form(deepseek, Layout(tp=2, dp=2, ep=4), load, "vllm")
    rows = {(r.op, r.input_shape): r.count for r in formula.collectives if r.group == "tp"}
    assert rows == {
        ("all_reduce", (5, 5120)): 2 + 1,
        ("reduce_scatter", (6, 5120)): 4,
        ("all_gather", (3, 5120)): 3,
        ("all_gather", (3, 10240)): 1,
        ("all_gather", (1, 51200)): 1,
    }


@settings(max_examples=8, deadline=None)
@given(
    layout=st.sampled_from(["tp2xep2", "tp4xep2", "tp4xep4", "sp2xep2", "dp2xep2", "dp2xtp2xep4"]),
    prompt=st.integers(1, 40),
    decode=st.integers(1, 3),
    batch=st.integers(1, 5),
    dtype=st.sampled_from(["bfloat16", "float32"]),
)
def test_rows_of_the_exchange_say_what_there_is_room_for(layout, prompt, decode, batch, dtype):
    """In every source alike: two calls a layer, bytes of all rows of a rank to every rank."""
    spec, parsed = replace(QWEN, num_layers=2, dtype=dtype), Layout.parse(layout)
    load = Workload(prompt_tokens=prompt, decode_tokens=decode, batch=batch)
    formula, dry = (make(spec, parsed, load) for make in (closed_form, dry_run))
    found, same = (
        [row for row in made.collectives if row.op == "all_to_all"] for made in (formula, dry)
    )
    assert [replace(row, provenance="metadata") for row in found] == same
    assert {row.bound for row in found} == {"upper"} == {row.to_dict()["bound"] for row in found}
    for row in found:
        assert row.input_shape is not None
        rows, row_bytes = row.input_shape[0], spec.hidden_size * element_bytes(dtype)
        choices = 8 * spec.experts_per_token if row.dtype == "uint8" else 0
        assert row.message_bytes == rows * (row_bytes + choices)
        assert row.count % spec.num_layers == 0 == rows % parsed.ep
    assert sum(row.count for row in found if row.dtype == "uint8") == sum(
        row.count for row in found if row.dtype == dtype
    )


def test_sizes_of_the_exchange():
    rows = closed_form(
        MIXTRAL, Layout(tp=4, ep=4), Workload(prompt_tokens=6, decode_tokens=1)
    ).collectives
    shapes = {row.input_shape: row.count for row in rows if row.op == "all_to_all"}
    # 6 rows: 2 a rank, room for them at 4 ranks; two experts a row, each 8 bytes beside it
    assert shapes == {(8, 2 * 4096 + 2 * 8): 4, (8, 4096): 4}


def test_experts_that_are_spread_and_sliced_add_up_alike():
    """TensorRT-LLM's moe_tp x moe_ep: the sum over the group is that of either."""
    load = Workload(prompt_tokens=6, decode_tokens=2)
    both = [closed_form(MIXTRAL, Layout(tp=8, ep=ep), load, "trtllm") for ep in (1, 4)]
    assert both[0].collectives == both[1].collectives


def test_what_cannot_be_is_refused():
    with pytest.raises(LayoutError, match="`ep` 2"):
        dry_run(MIXTRAL, Layout(tp=4, ep=2), Workload(), "vllm")
