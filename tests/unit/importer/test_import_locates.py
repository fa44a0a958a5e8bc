"""A fault is named by step, layer and rank, with the time in that rank's trace."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.importer.importing import import_traces
from weft.importer.locate import _odd_one
from weft.vocabulary.model_spec import ModelSpec

TRACES = Path(__file__).parents[2] / "data" / "traces"
TINY = ModelSpec(
    name="tiny32", num_layers=32, hidden_size=256, num_heads=8, num_kv_heads=4, head_dim=32,
    intermediate_size=512, vocab_size=128256,
)  # fmt: skip


def edited(folder: Path, rank: int, step: int, index: int, edit: str) -> tuple[list[Path], float]:
    """The two-rank trace with one all-reduce of one step dropped, doubled or resized."""
    paths, time = [], 0.0
    for number in (0, 1):
        document = json.loads(
            gzip.decompress((TRACES / f"vllm_cpu_tp2_rank{number}.json.gz").read_bytes())
        )
        events: list[dict[str, Any]] = document["traceEvents"]
        if number == rank:
            calls = sorted(
                (e for e in events if e.get("name") == "_C::shm_allreduce"), key=lambda e: e["ts"]
            )
            chosen = calls[step * 65 + index]
            time = chosen["ts"]
            if edit == "dropped":
                events.remove(chosen)
            elif edit == "doubled":
                events.append(chosen | {"ts": chosen["ts"] + chosen["dur"] + 0.5})
            else:
                chosen["args"]["Input Dims"][1][1] = 512
        path = folder / f"rank{number}.json"
        path.write_text(json.dumps(document))
        paths.append(path)
    return paths, time


@pytest.mark.parametrize("edit", ["dropped", "doubled", "resized"])
@pytest.mark.parametrize(
    ("rank", "step", "index", "layer", "part"),
    [(1, 3, 15, 7, "attention"), (0, 7, 40, 19, "MLP"), (1, 0, 0, None, "embedding")],
)
def test_the_place_is_named(
    tmp_path: Path, edit: str, rank: int, step: int, index: int, layer: int | None, part: str
) -> None:
    paths, time = edited(tmp_path, rank, step, index, edit)
    result = import_traces(paths, model=TINY)
    assert result.conformance.conforms is False
    first = result.conformance.deviations[0]
    assert (first.rank, first.step) == (rank, step)
    assert (first.layer, first.part) == (layer, part)
    assert first.time_us == pytest.approx(time, abs=200_000)
    if edit == "resized":
        assert first.time_us == pytest.approx(time, abs=0.01)
    assert f"rank {rank}, step {step}" in result.conformance.reason
    document = result.to_dict()["conformance"]["deviations"]
    assert document[0]["text"] == first.text()


@settings(deadline=None)
@given(
    gaps=st.lists(st.integers(10, 1000), min_size=4, max_size=30, unique=True),
    data=st.data(),
)
def test_the_missing_one_of_equal_calls_is_found_by_the_gaps(
    gaps: list[int], data: st.DataObject
) -> None:
    times = [float(sum(gaps[:number])) for number in range(len(gaps) + 1)]
    index = data.draw(st.integers(1, len(times) - 2))
    assert _odd_one(times, times[:index] + times[index + 1 :], together=False) == index
    later = [time + 7 for time in times[:index] + times[index + 1 :]]
    assert _odd_one(times, later, together=True) == index
