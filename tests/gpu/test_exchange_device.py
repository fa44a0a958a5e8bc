"""The exchange with experts on real GPUs: against plain torch and the library's all-to-all.

``pytest tests/gpu/test_exchange_device.py`` on a machine with two GPUs; more ranks share them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from gpu import test_allreduce_device as device
from gpu.test_allreduce_device import FEW, check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]

run_ranks = partial(device.run_ranks, script=Path(__file__).with_name("exchange_ranks.py"))


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_random_exchanges_have_the_defined_bits(num_ranks: int) -> None:
    check(run_ranks(num_ranks, "exchange", "60" if FEW else "400", "60"))


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_graphs_serve_any_routing(num_ranks: int) -> None:
    check(run_ranks(num_ranks, "exchange_graph", "100" if FEW else "2000"))


def test_graphs_beside_the_library() -> None:
    ranks = min(4, torch.cuda.device_count())
    check(run_ranks(ranks, "exchange_graph", "500", "beside", timeout_s=180))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_rank_that_comes_too_late(num_ranks: int) -> None:
    check(run_ranks(num_ranks, "exchange_late"))
