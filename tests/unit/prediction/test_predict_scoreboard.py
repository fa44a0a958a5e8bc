"""The scoreboard: own rows, serving rows from a file, decisions, and the scale study."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from weft.errors import EnvironmentUnavailable, FileFormatError, LayoutError
from weft.prediction import silicon
from weft.prediction.measured import h200_runs, published_runs, weft_runs
from weft.prediction.scale_study import scale_study, study_layout
from weft.prediction.scoreboard import (
    TPOT,
    decisions,
    document,
    score_runs,
    score_silicon,
    summaries,
)
from weft.vocabulary.model_source import load_spec

COLUMNS = [
    "id",
    "backend",
    "model_path",
    "system",
    "precision",
    "mode",
    "isl",
    "osl",
    "batch_size",
    "tp_size",
    "pp_size",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
]


def row(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": "a", "backend": "vllm", "model_path": "meta-llama/Llama-3.1-70B",
        "system": "h200_sxm", "precision": "fp8", "mode": "agg", "isl": 1024, "osl": 1024,
        "batch_size": "8.0", "tp_size": "2.0", "pp_size": "1.0",
        "silicon_ttft_ms": 154.0, "silicon_tpot_ms": 14.4,
    }  # fmt: skip
    return values | changes


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[silicon.SiliconRow]:
    made = [
        row(),
        row(tp_size="4.0", silicon_ttft_ms=101.0, silicon_tpot_ms=10.1),
        row(system="h100_sxm", tp_size="4.0", silicon_ttft_ms=96.0, silicon_tpot_ms=12.1),
        row(backend="trtllm"),
        row(backend="sglang", system="h100_sxm"),
        row(mode="disagg"),
        row(model_path="deepseek-ai/DeepSeek-V3"),
    ]
    return silicon.read_rows(write(tmp_path / "silicon_sample.csv", made))


def test_published_times_are_shown_as_compared_only() -> None:
    scores = score_runs(published_runs())
    assert {score.role for score in scores} == {"compared"}
    assert {score.source for score in scores} == {"published"}


def test_serving_rows_are_read_and_scored(rows: list[silicon.SiliconRow]) -> None:
    assert [item.role for item in rows] == ["test", "test", "tuned"]
    scores = score_silicon(rows, lambda _: (100.0, 20.0))
    tpot = [score for score in scores if score.quantity == TPOT]
    assert all(abs(score.error) < 0.15 for score in tpot)
    assert {score.peer for score in tpot} == {20.0}
    groups = {(item.source, item.role): item for item in summaries(tpot)}
    assert groups["silicon llama-3.1-70b", "test"].count == 2
    assert groups["silicon llama-3.1-70b", "test"].peer_mean_error == pytest.approx(0.68, abs=0.2)


def test_rows_beyond_the_device_are_set_apart(tmp_path: Path) -> None:
    made = [row(silicon_ttft_ms=1.0, silicon_tpot_ms=0.1, batch_size="128")]
    found = silicon.read_rows(write(tmp_path / "s.csv", made))
    assert not found[0].is_possible
    assert "impossible" in summaries(score_silicon(found))[0].source


def test_rows_that_contradict_the_others_are_only_compared(tmp_path: Path) -> None:
    made = [row(), row(model_path="nvidia/Llama-3.1-8B-Instruct-FP8"), row(backend="sglang")]
    found = silicon.read_rows(write(tmp_path / "s.csv", made))
    assert [item.role for item in found] == ["test", "compared", "compared"]
    assert summaries(score_silicon(found))[-3].source == "silicon llama-3.1-70b, sglang"
    together = summaries(score_silicon(found))[-1]
    assert (together.role, together.count) == ("all", 1)


def test_nine_in_ten_measured_points_lie_inside_their_interval() -> None:
    every = summaries(score_runs([*h200_runs(), *weft_runs(), *published_runs()]))
    together = {item.quantity: item for item in every if item.role == "all"}
    assert {item.count for item in together.values()} == {38}
    assert all(item.inside >= 0.89 for item in together.values())


def test_decisions_beside_the_trivial_rule(rows: list[silicon.SiliconRow]) -> None:
    chosen = {item.chooser: item for item in decisions(rows, (8.0, 12.0, 20.0))}
    assert {item.questions for item in chosen.values()} == {2}
    assert chosen["weft"].right_tp == 1.0
    assert chosen["weft"].over_limit == 0.0
    assert chosen["larger TP is faster"].right_tp == 0.5


def test_the_document_is_complete(rows: list[silicon.SiliconRow]) -> None:
    scores = score_runs(h200_runs())
    made = document(scores, decisions(rows, (12.0,)))
    assert made["schema"] == "weft.scoreboard/1"
    assert len(made["rows"]) == 18
    assert {"name", "quantity", "predicted", "low", "high", "measured"} <= set(made["rows"][0])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FileFormatError, match=r"not a silicon_sample\.csv"):
        silicon.read_rows(path)
    with pytest.raises(FileFormatError, match="cannot be read"):
        silicon.read_rows(tmp_path / "none.csv")


def test_without_the_peer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(silicon, "import_module", missing)
    with pytest.raises(EnvironmentUnavailable, match="pip install aiconfigurator"):
        silicon.peer_predictor()
    monkeypatch.setattr(silicon.util, "find_spec", lambda _: None)
    assert silicon.find_file(None) is None
    assert silicon.find_file(tmp_path) == tmp_path


def test_with_the_peer(monkeypatch: pytest.MonkeyPatch, rows: list[silicon.SiliconRow]) -> None:
    class Api:
        @staticmethod
        def cli_estimate(model: str, _system: str, **options: Any) -> Any:
            if options["tp_size"] == 4:
                raise RuntimeError("OOM")
            assert model == "meta-llama/Meta-Llama-3.1-70B"
            return type("Result", (), {"ttft": 1.0, "tpot": 2.0})()

    monkeypatch.setattr(silicon, "import_module", lambda _: Api)
    predict = silicon.peer_predictor()
    assert [predict(item) for item in rows] == [(1.0, 2.0), None, None]


def test_scaling_has_the_published_order() -> None:
    points = {
        (p.fabric, p.workload, p.gpus, p.family, p.all_reduce): p
        for p in scale_study(
            ["llama-3.1-405b"],
            ["a100-slingshot11", "gh200-ndr"],
            ["prefill-heavy", "decode-heavy"],
            [4, 16, 128],
        )
    }
    assert all(point.prediction.memory.fits for point in points.values())
    assert not any(key[2] == 4 for key in points)
    for fabric in ("a100-slingshot11", "gh200-ndr"):
        tp = points[fabric, "decode-heavy", 128, "tp", "hierarchical_doubling"]
        hybrid = points[fabric, "decode-heavy", 128, "hybrid", "hierarchical_doubling"]
        nccl = points[fabric, "decode-heavy", 128, "tp", "nccl"]
        # TP wins decode-heavy work; the hierarchical all-reduce is what it gains by; nobody
        # scales well.
        assert tp.prediction.e2e_ms.value < hybrid.prediction.e2e_ms.value
        assert tp.prediction.e2e_ms.value < nccl.prediction.e2e_ms.value
        assert tp.speedup < 8 / 2
        assert nccl.prediction.communication_share > 0.5


def test_layouts_of_the_study() -> None:
    spec = load_spec("llama-3.1-70b")
    wide = study_layout(spec, 128, 4, "tp")
    deep = study_layout(spec, 128, 4, "hybrid")
    assert wide is not None
    assert deep is not None
    assert (wide.name, wide.nodes) == ("dp2xtp64", 32)
    assert (deep.name, deep.nodes) == ("tp4xpp32", 32)
    assert study_layout(spec, 2, 4, "hybrid") is None
    with pytest.raises(LayoutError, match="not in the scale study"):
        list(scale_study(["llama-3.1-8b"], ["h200-nvlink"], ["paper"], [4]))
