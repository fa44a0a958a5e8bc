"""Families without kernels of their own on a GPU: the CPU's tokens in fp32, numbers in bf16.

``pytest tests/gpu/test_families_device.py`` on a machine with one GPU.
"""

from __future__ import annotations

import math

import pytest
import torch

from checkpoints import make_checkpoint
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),
]

FAMILIES = (
    "gemma3",
    "deepseek-v2",
    "deepseek-v3",
    "glm4-moe",
    "qwen3-next",
    "gpt-oss",
    "minimax-m2",
    "llama4",
)
PROMPTS = [[5, 6, 7, 8, 9], [11], [(7 * i) % 190 + 3 for i in range(90)]]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("model"), request.param))


def test_tokens_of_the_cpu_in_fp32(checkpoint):
    sampling = SamplingParams(max_tokens=48, ignore_eos=True)
    found = {}
    for device in ("cpu", "cuda"):
        for rows in (2048, 16):
            with LLM(checkpoint, dtype="float32", device=device, max_batch_tokens=rows) as llm:
                found[device, rows] = [c.token_ids for c in llm.generate(PROMPTS, sampling)]
    assert len({tuple(tokens) for tokens in found.values()}) == 1


def test_numbers_in_bf16(checkpoint):
    sampling = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=1)
    with LLM(checkpoint, dtype="bfloat16", device="cuda") as llm:
        every = llm.generate(PROMPTS, sampling)
    assert all(math.isfinite(one.logprob) for c in every for one in c.logprobs)
    assert all(len(c.token_ids) == 8 for c in every)
