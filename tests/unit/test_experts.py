"""Experts: the three ways to run them agree; the router keeps k gates that add up."""

from __future__ import annotations

import pytest
import torch

from weft.layers.linear import Placement
from weft.models.moe import Experts, Router
from weft.vocabulary.model_spec import ModelSpec


def spec(normalize: bool) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        family="qwen3_moe",
        num_layers=1,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        vocab_size=50,
        num_experts=8,
        experts_per_token=3,
        expert_intermediate_size=96,
        normalize_expert_weights=normalize,
    )


@pytest.mark.parametrize("experts", [range(8), range(2, 6), range(2)])
@pytest.mark.parametrize("rows", [1, 17])
@torch.inference_mode()
def test_all_ways_agree(experts, rows):
    torch.manual_seed(rows)
    where = Placement(tp_rank=0, tp_size=1, dtype=torch.bfloat16, device=torch.device("cpu"))
    layer, router = Experts(spec(True), "x", experts, where), Router(spec(True), "x", where)
    for parameter in (*layer.parameters(), *router.parameters()):
        parameter.data.normal_(0, 0.2)
    x = torch.randn(rows, 64, dtype=torch.bfloat16)
    gates = router(x)[:, experts.start : experts.stop]
    expected = layer.each_on_its_rows(x, gates).float()
    for got in (layer.each_on_all_rows(x, gates), layer.grouped(x, gates)):
        torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("normalize", [False, True])
@torch.inference_mode()
def test_router(normalize):
    where = Placement(tp_rank=0, tp_size=1, dtype=torch.float32, device=torch.device("cpu"))
    router = Router(spec(normalize), "x", where)
    router.weight.data.normal_()
    gates = router(torch.randn(9, 64))
    assert ((gates > 0).sum(dim=1) == 3).all()
    sums = gates.sum(dim=1)
    if normalize:
        torch.testing.assert_close(sums, torch.ones(9))
    else:
        assert (sums < 1).all()
