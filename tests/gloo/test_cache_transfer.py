"""Caches of random values between real processes of two layouts: what arrives is what left."""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints import make_config
from weft.launch.elastic import Launch, run_ranks

PAIRS = (
    ("1", "tp2"),
    ("tp2", "1"),
    ("tp2", "tp2"),
    ("pp2", "tp2"),
    ("tp2", "pp2"),
    ("1", "pp3"),
)
SAME_TP = ("1", "pp2"), ("pp2", "1"), ("tp2", "tp2")
"""A recurrent state goes from rank to rank as it is."""


def test_the_cache_that_arrives_is_the_one_that_left(tmp_path):
    cases = []
    for family in ("llama", "gemma3", "deepseek-v2", "qwen3-next"):
        make_config(family).save_pretrained(tmp_path / family)
        cases += [
            (str(tmp_path / family), *pair)
            for pair in (SAME_TP if family == "qwen3-next" else PAIRS)
        ]
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"cases": cases, "length": 9, "ranks": 4}))
    worker = Path(__file__).parent / "cache_worker.py"
    run_ranks([str(worker), str(job)], Launch(ranks_per_node=4))
