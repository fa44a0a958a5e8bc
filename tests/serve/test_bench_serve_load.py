"""Arrivals, traces and prompts."""

from __future__ import annotations

import numpy as np
import pytest

from weft.bench.serving.arrivals import at_random, replayed, synthetic
from weft.bench.serving.prompts import prompt_token_ids, prompt_words
from weft.bench.serving.records import RequestSpec
from weft.bench.serving.trace_files import read_trace
from weft.errors import FileFormatError, WorkloadError

MOONCAKE = """{"timestamp": 27000, "input_length": 1030, "output_length": 52, "hash_ids": [5, 6, 7]}
{"timestamp": 30500, "input_length": 600, "output_length": 1, "hash_ids": [5, 9]}
"""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.0319600,0,8
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,API log
"""


@pytest.mark.parametrize(
    ("text", "times", "prompts", "outputs"),
    [
        (MOONCAKE, [0, 3.5], [1030, 600], [52, 1]),
        (AZURE, [0, 0.052], [4808, 3180], [10, 8]),
        (AZURE_2024, [0, 0.99007], [2162, 2399], [5, 6]),
        (BURSTGPT, [0, 40], [472, 1087], [18, 230]),
    ],
)
def test_traces(tmp_path, text, times, prompts, outputs):
    path = tmp_path / "trace"
    path.write_text(text)
    specs = replayed(read_trace(path), 1.0, None)
    assert [spec.at_s for spec in specs] == pytest.approx(times, abs=1e-5)
    assert [spec.prompt_tokens for spec in specs] == prompts
    assert [spec.output_tokens for spec in specs] == outputs
    assert [s.at_s for s in replayed(read_trace(path), 2.0, 1)] == [0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b,c\n1,2,3\n",
        '{"timestamp": "x"}\n',
        "TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,1\n",
    ],
)
def test_unreadable_traces(tmp_path, text):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(FileFormatError, match="`trace`"):
        read_trace(path)
    with pytest.raises(FileFormatError, match="`trace`"):
        read_trace(tmp_path / "missing")


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_asked_mean_and_spread(burstiness):
    specs = at_random(synthetic(20_000, 1, 1), 50.0, burstiness, seed=3)
    gaps = np.diff([spec.at_s for spec in specs])
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1 / burstiness, rel=0.1)
    assert specs == at_random(synthetic(20_000, 1, 1), 50.0, burstiness, seed=3)


def test_wrong_loads():
    for arguments in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(WorkloadError, match="must be 1 to"):
            synthetic(*arguments)
    one = synthetic(1, 1, 1)
    for wrong in (
        lambda: at_random(one, 0),
        lambda: at_random(one, 1, 0),
        lambda: replayed(one, 0, 1),
    ):
        with pytest.raises(WorkloadError, match="above 0"):
            wrong()


def test_prompts_repeat_by_seed_and_share_equal_blocks():
    plain = RequestSpec(prompt_tokens=700, output_tokens=1)
    assert len(prompt_token_ids(plain, 0, 0, 50)) == 700
    assert prompt_words(plain, 1, 0) == prompt_words(plain, 1, 0)
    assert prompt_words(plain, 1, 0) != prompt_words(plain, 2, 0)
    assert len(prompt_words(plain, 1, 0).split()) == 700
    first = RequestSpec(prompt_tokens=1030, output_tokens=1, block_ids=(5, 6, 7))
    second = RequestSpec(prompt_tokens=700, output_tokens=1, block_ids=(5, 9))
    a, b = prompt_token_ids(first, 0, 0, 999), prompt_token_ids(second, 1, 0, 999)
    assert (len(a), len(b)) == (1030, 700)
    assert a[:512] == b[:512]
    assert a[512:700] != b[512:]
