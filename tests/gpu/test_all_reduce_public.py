"""``weft.all_reduce`` and its fused form on real GPUs, as a user's own torchrun script calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="needs two GPUs"
    ),
]

SCRIPT = Path(__file__).with_name("public_all_reduce_ranks.py")
CASES = ("values", "fallbacks", "fused", "graph", "compile", "groups", "bad", "threads")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_public_all_reduce(case: str, num_ranks: int) -> None:
    if torch.cuda.device_count() < num_ranks:
        pytest.skip("more ranks than GPUs")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={num_ranks}", str(SCRIPT), case,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": os.devnull},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(ranks) == num_ranks
    assert not any(rank["problems"] for rank in ranks), ranks
