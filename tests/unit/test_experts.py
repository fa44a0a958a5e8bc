"""Experts: the three ways to run them agree; the router keeps k gates that add up."""

from __future__ import annotations

import pytest
import torch

from weft.layers.linear import Placement
from weft.models.experts import RoutedExperts
from weft.models.routing import Router
from weft.vocabulary.feed_forward_kinds import ClampedSwiglu, Experts, Routing
from weft.vocabulary.tensor_names import TensorNames


def kind_of(*, bias=False, activation="silu", **rule) -> Experts:
    return Experts(
        num_experts=8,
        experts_per_token=3,
        intermediate_size=96,
        routing=Routing(**rule),
        bias=bias,
        activation=activation,
    )


KINDS = {
    "plain": kind_of(),
    "biases and a clamp": kind_of(bias=True, activation=ClampedSwiglu(alpha=1.7, limit=0.5)),
    "weighed inputs": kind_of(scores="sigmoid", normalize=False, weighs_inputs=True),
}


@pytest.mark.parametrize("experts", [range(8), range(2, 6), range(2)])
@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@torch.inference_mode()
def test_all_ways_agree(experts, rows, kind):
    torch.manual_seed(rows)
    where = Placement(tp_rank=0, tp_size=1, dtype=torch.bfloat16, device=torch.device("cpu"))
    layer = RoutedExperts(kind, 64, "x", TensorNames(), experts, where)
    router = Router(kind, 64, "x", TensorNames(), where)
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
    router = Router(kind_of(normalize=normalize), 64, "x", TensorNames(), where)
    router.weight.data.normal_()
    gates = router(torch.randn(9, 64))
    assert ((gates > 0).sum(dim=1) == 3).all()
    sums = gates.sum(dim=1)
    if normalize:
        torch.testing.assert_close(sums, torch.ones(9))
    else:
        assert (sums < 1).all()
