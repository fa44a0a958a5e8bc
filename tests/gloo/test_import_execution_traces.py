"""Real execution traces of two ranks, and the profiler's of the same run, which has no shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from weft.importer.importing import import_traces
from weft.vocabulary.model_spec import ModelSpec

WORKER = Path(__file__).with_name("traced_worker.py")
SPEC = ModelSpec(
    name="made", num_layers=2, hidden_size=64, num_heads=16, num_kv_heads=16, head_dim=8,
    intermediate_size=256, vocab_size=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    ranks = [
        subprocess.Popen([sys.executable, str(WORKER), str(folder), str(rank)]) for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    return folder


def test_alone(folder: Path) -> None:
    result = import_traces(sorted(folder.glob("et_rank*.json")), model=SPEC)
    assert result.conformance.conforms, result.conformance.reason
    shapes = {(m.row.phase, m.row.op, m.row.input_shape, m.row.count) for m in result.rows}
    assert shapes == {
        ("prefill", "all_reduce", (6, 64), 5), ("prefill", "all_gather", (1, 256), 1),
        ("decode", "all_reduce", (1, 64), 5), ("decode", "all_gather", (1, 256), 1),
    }  # fmt: skip
    assert {m.row.dtype for m in result.rows} == {"bfloat16"}
    assert all(m.row.duration_us is None for m in result.rows)


def test_beside_the_profilers(folder: Path) -> None:
    profiled = sorted(folder.glob("rank*.json"))
    alone = import_traces(profiled, model=SPEC)
    result = import_traces([*profiled, *sorted(folder.glob("et_rank*.json"))], model=SPEC)
    assert {m.row.provenance for m in alone.rows} == {"model"}
    assert {m.row.provenance for m in result.rows} == {"shape"}
    assert result.conformance.conforms, result.conformance.reason
    assert all(m.row.duration_us and m.row.transfer_us for m in result.rows)
