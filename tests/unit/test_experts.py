"""Experts: the three ways to run them agree; the router keeps k gates that add up."""

from __future__ import annotations

import pytest
import torch

from weft.layers.expert_exchange import GatheredExperts
from weft.layers.linear import Placement
from weft.models.experts import RoutedExperts
from weft.models.routing import Router
from weft.vocabulary.feed_forward_kinds import ClampedSwiglu, Experts, Routing
from weft.vocabulary.routes import Routes
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
    routes = router(x).among(experts)
    expected = layer.each_on_its_rows(x, routes).float()
    for got in (layer.each_on_all_rows(x, routes), layer.grouped(x, routes)):
        torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("normalize", [False, True])
@torch.inference_mode()
def test_router(normalize):
    where = Placement(tp_rank=0, tp_size=1, dtype=torch.float32, device=torch.device("cpu"))
    router = Router(kind_of(normalize=normalize), 64, "x", TensorNames(), where)
    router.weight.data.normal_()
    gates = router(torch.randn(9, 64)).gates()
    assert ((gates > 0).sum(dim=1) == 3).all()
    sums = gates.sum(dim=1)
    if normalize:
        torch.testing.assert_close(sums, torch.ones(9))
    else:
        assert (sums < 1).all()


def test_routes_and_gates_are_the_same_choice():
    weights, ids = torch.rand(9, 8).topk(3, dim=1)
    routes = Routes(ids=ids, weights=weights, nobody=8)
    assert torch.equal(routes.gates().gather(1, ids), weights)
    assert ((routes.gates() > 0).sum(dim=1) == 3).all()
    assert torch.equal(routes.among(range(2, 6)).gates(), routes.gates()[:, 2:6])


class TwoRanks:
    """A group of two ranks that are asked one after the other: what each would have sent."""

    size = 2

    def __init__(self, rank: int, sent: list[list[torch.Tensor]]) -> None:
        self.rank, self._sent, self._calls = rank, sent, 0
        self.partial = torch.empty(0)

    def all_gather(self, tensor: torch.Tensor, dim: int, site: str) -> torch.Tensor:
        found = torch.cat([ranks[self._calls] for ranks in self._sent], dim)
        assert found.shape[0] == 2 * len(tensor)
        self._calls += 1
        return found

    def reduce_scatter(self, tensor: torch.Tensor, site: str) -> torch.Tensor:
        self.partial = tensor
        return tensor


@torch.inference_mode()
def test_gathered_experts_give_each_rank_its_rows_sums():
    torch.manual_seed(0)
    where = Placement(tp_rank=0, tp_size=1, dtype=torch.float32, device=torch.device("cpu"))
    kind = KINDS["plain"]
    router = Router(kind, 64, "x", TensorNames(), where)
    whole = RoutedExperts(kind, 64, "x", TensorNames(), range(8), where)
    for parameter in (*router.parameters(), *whole.parameters()):
        parameter.data.normal_(0, 0.2)
    rows = [torch.randn(5, 64), torch.randn(5, 64)]
    routes = [router(x) for x in rows]
    sent = [[x, own.weights, own.ids.int()] for x, own in zip(rows, routes, strict=True)]
    total = torch.zeros(10, 64)
    for rank in (0, 1):
        group = TwoRanks(rank, sent)
        exchange = GatheredExperts(group, 8)
        every, own = exchange.dispatch(rows[rank], routes[rank], "")
        layer = RoutedExperts(kind, 64, "x", TensorNames(), exchange.experts, where)
        half = slice(rank * 4 * 96 * 2, (rank + 1) * 4 * 96 * 2)
        layer.gate_up.values.data = whole.gate_up.values[half].clone()
        layer.down.values.data = whole.down.values[:, rank * 4 * 96 : (rank + 1) * 4 * 96].clone()
        exchange.combine(layer(every, own), own, "")
        total += group.partial
    expected = torch.cat([whole(x, own) for x, own in zip(rows, routes, strict=True)])
    torch.testing.assert_close(total, expected)
