"""The library's front: one name for each question, the same answers as the commands."""

from __future__ import annotations

import pytest

import weft
from weft.errors import UserError
from weft.vocabulary.comparison import compare


def test_every_public_name_is_there():
    for name in weft.__all__:
        assert getattr(weft, name) is not None
    assert set(weft.__all__) <= set(dir(weft))
    with pytest.raises(AttributeError):
        weft.weave  # noqa: B018


def test_predict_and_trace_give_the_same_schedule():
    layout, workload = weft.Layout(tp=2, pp=2), weft.Workload(decode_tokens=5)
    formula = weft.predict("qwen3-8b", layout, workload, engine="vllm-v0")
    dry = weft.trace("qwen3-8b", layout, workload, engine="vllm-v0")
    assert all(row.verdict == "equal" for row in compare(formula, dry))


def test_times_and_plans():
    prediction = weft.predict("llama-3.1-8b", weft.Layout(tp=2), accelerator="h200-sxm")
    assert prediction.tpot_ms.value > 0
    found = weft.plan("llama-3.1-8b", 4)
    assert found.best.layout.world_size == 4


def test_mistakes_are_user_errors():
    with pytest.raises(UserError, match="`tp` 3"):
        weft.predict("llama-3.1-8b", weft.Layout(tp=3))
    with pytest.raises(UserError, match="tpu"):
        weft.plan("llama-3.1-8b", 4, accelerator="tpu")


def test_all_reduce_before_the_process_group_is_one_line():
    import torch

    with pytest.raises(UserError, match=r"call torch\.distributed\.init_process_group first"):
        weft.all_reduce(torch.ones(2))
