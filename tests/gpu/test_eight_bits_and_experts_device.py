"""Kernels of experts and of 8-bit floats on a GPU against plain torch on the same numbers.

``pytest tests/gpu/test_eight_bits_and_experts_device.py`` on a machine with one GPU.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from checkpoints import make_checkpoint
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.layers.float8_matrix import Float8Matrix, dequantised, quantised
from weft.layers.linear import Placement
from weft.models.experts import RoutedExperts
from weft.models.routing import Router
from weft.models.weights import fill_dummy
from weft.vocabulary.feed_forward_kinds import ClampedSwiglu, Experts, Routing
from weft.vocabulary.routes import Routes
from weft.vocabulary.tensor_names import TensorNames
from weft.vocabulary.weight_formats import FORMATS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),
]
PLACE = Placement(tp_rank=0, tp_size=1, dtype=torch.bfloat16, device=torch.device("cuda"))


def blocked(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, scales [G, O]) with a scale for every ``group`` columns of a row."""
    parts = [quantised(part) for part in weight.split(group, dim=1)]
    return torch.cat([v for v, _ in parts], 1).contiguous(), torch.cat([s for _, s in parts])


@pytest.mark.parametrize("seed", range(20))
@torch.inference_mode()
def test_experts_of_few_rows(seed):
    pick = random.Random(seed)
    torch.manual_seed(seed)
    groups = pick.choice([1, 1, 4])
    kind = Experts(
        num_experts=pick.choice([16, 64]),
        experts_per_token=pick.choice([1, 4, 8]),
        intermediate_size=pick.choice([192, 256, 768]),
        routing=Routing(
            scores=pick.choice(["softmax", "sigmoid"]),
            normalize=pick.random() < 0.5,
            groups=groups,
            groups_per_token=min(groups, 2),
            corrected=pick.random() < 0.5,
            weighs_inputs=pick.random() < 0.3,
        ),
        bias=pick.random() < 0.3,
        activation=pick.choice(["silu", ClampedSwiglu(alpha=1.7, limit=0.5)]),
        format=FORMATS[pick.choice(["bfloat16", "float8_e4m3fn", "fp8_block"])],
    )
    first = pick.choice([0, 0, kind.num_experts // 4])
    held = range(first, kind.num_experts - first)
    layer = RoutedExperts(kind, 512, "x", TensorNames(), held, PLACE)
    router = Router(kind, 512, "x", TensorNames(), PLACE)
    fill_dummy(layer, seed)
    fill_dummy(router, seed)
    if router.correction is not None:
        router.correction.data.normal_()
    for rows in (1, 2, 8, 33, 64):
        x = torch.randn(rows, 512, device="cuda", dtype=torch.bfloat16)
        routes = router(x)
        expected = router.cpu()(x.cpu())
        router.cuda()
        error = (routes.gates().cpu() - expected.gates()).abs()
        assert (error > 0.02).sum() <= 2 * rows // 16 + 2, "near ties"
        here = routes.among(held)
        reference = layer.each_on_its_rows(x, here).float()
        size = reference.norm().clamp(min=1e-3)
        for way in (layer.few, layer.grouped):
            for _ in range(3):
                assert (way(x, here).float() - reference).norm() / size < 2e-2, way
        nobody = Routes(
            ids=torch.full_like(here.ids, len(held)), weights=here.weights, nobody=len(held)
        )
        assert not layer.few(x, nobody).any()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 16, 33, 64, 200])
@pytest.mark.parametrize(
    ("n", "k", "group"),
    [
        (6144, 4096, 0),
        (4096, 14336, 0),
        (3584, 4096, 128),
        (4096, 2048, 128),
        (4096, 192, 64),
        (200, 96, 0),
        (208, 96, 8),
    ],
)
def test_products_of_eight_bits(rows, n, k, group, gated):
    matrix = Float8Matrix(
        (n * (1 + gated), k), [], group or k, dtype=torch.bfloat16, device=PLACE.device
    )
    weight = torch.randn(n * (1 + gated), k, device="cuda") / k**0.5
    values, scales = blocked(weight, group or k)
    matrix.values.data, matrix.scales.data = values, scales
    full = dequantised(values, scales, torch.float32)
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    expected = F.linear(x.double(), full.double())
    for _ in range(3):
        if gated:
            gate, up = expected.chunk(2, dim=1)
            reference, got = F.silu(gate) * up, matrix.gated_product(x, None, "silu")
        else:
            bias = torch.randn(n, device="cuda", dtype=torch.bfloat16)
            reference, got = expected + bias, matrix.product(x, bias)
        assert (got.double() - reference).norm() / reference.norm() < 1e-2


def test_dequantised():
    weight = torch.randn(300, 640, device="cuda")
    values, scales = blocked(weight, 64)
    expected = values.float() * scales.t().repeat_interleave(64, dim=1)
    assert torch.equal(dequantised(values, scales, torch.float32), expected)
    part = dequantised(values[10:20, 128:256], scales[2:4, 10:20], torch.bfloat16)
    assert torch.equal(part, expected[10:20, 128:256].bfloat16())


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "deepseek-v3", "gpt-oss"])
def test_tokens_of_a_cpu_with_rounded_weights(family, tmp_path):
    """In fp32, where neither device rounds products."""
    checkpoint = str(make_checkpoint(tmp_path, family))
    prompts = [[5, 6, 7, 8, 9], [11], [(7 * i) % 190 + 3 for i in range(90)]]
    sampling = SamplingParams(max_tokens=32, ignore_eos=True)
    found = []
    for device in ("cpu", "cuda"):
        config = {"dtype": "float32", "weights_dtype": "float8_e4m3fn", "device": device}
        with LLM(checkpoint, **config) as llm:
            found.append([c.token_ids for c in llm.generate(prompts, sampling)])
    assert found[0] == found[1]
