"""The scoreboard: own rows, public rows asked as a user asks, decisions, and the scale study."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from weft import api
from weft.calibration import public_rows
from weft.calibration.measured import h200_runs, weft_runs
from weft.calibration.scoreboard import (
    TPOT,
    TTFT,
    ask_all,
    decisions,
    document,
    score_answers,
    score_runs,
    summaries,
)
from weft.errors import FileFormatError, LayoutError
from weft.planning.scale_study import scale_study, study_layout
from weft.prediction.serving import Serving
from weft.vocabulary.layout import Layout
from weft.vocabulary.model_source import load_spec
from weft.vocabulary.workload import Workload


def row(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": "a", "silicon_data_source": "silicon_concurrency=4;", "backend": "vllm",
        "model_path": "meta-llama/Llama-3.1-70B", "system": "h200_sxm", "precision": "fp8",
        "mode": "agg", "isl": 1024, "osl": 128, "gemm_quant_mode": "fp8",
        "moe_quant_mode": "fp8", "batch_size": "4.0", "tp_size": "2.0", "pp_size": "1.0",
        "attention_dp_size": "1", "moe_tp_size": "2", "moe_ep_size": "1",
        "prefill_num_workers": "", "decode_num_workers": "",
        "silicon_ttft_ms": 124.0, "silicon_tpot_ms": 14.0,
    }  # fmt: skip
    return values | changes


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[public_rows.PublicRow]:
    made = [
        row(),
        row(id="b", tp_size="4.0", silicon_ttft_ms=101.0, silicon_tpot_ms=9.9),
        row(id="c", system="h100_sxm", tp_size="4.0", silicon_ttft_ms=96.0, silicon_tpot_ms=12.1),
        row(id="d", mode="disagg"),
        row(id="2026_04_e", tp_size="64", moe_tp_size="8", moe_ep_size="8"),
    ]
    return public_rows.read_rows(write(tmp_path / "silicon_sample.csv", made))


def test_nine_in_ten_measured_points_lie_inside_their_interval() -> None:
    scores = score_runs([*h200_runs(), *weft_runs()])
    for quantity in (TTFT, TPOT):
        own = [s for s in scores if s.quantity == quantity]
        assert len(own) >= 32
        assert sum(score.is_inside for score in own) >= 0.89 * len(own)


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


def test_a_public_row_is_asked_as_a_user_asks(rows: list[public_rows.PublicRow]) -> None:
    found = public_rows.ask(rows[0])
    assert isinstance(found, Serving)
    by_hand = api.predict_serving(
        "llama-3.1-70b",
        Layout(tp=2),
        Workload(prompt_tokens=1024, decode_tokens=128),
        engine="vllm",
        accelerator="h200-sxm",
        weights="float8_e4m3fn",
        cache_dtype="float8_e4m3fn",
        concurrency=4,
        shortest=0.8,
    )
    assert found.to_dict() == by_hand.to_dict()


def test_sweeps_are_split_whole_and_alternate(rows: list[public_rows.PublicRow]) -> None:
    split = public_rows.split_of(rows)
    assert list(split) == sorted(split)
    assert [split[name] for name in sorted(split)] == ["fit", "test", "fit"]


def test_public_rows_are_scored_beside_the_peer(rows: list[public_rows.PublicRow]) -> None:
    answers = ask_all(rows[:4])
    scores = score_answers(answers, {"a": (100.0, 20.0)})
    assert {score.name for score in scores} == {"a", "b", "c"}
    tpot = [score for score in scores if score.quantity == TPOT]
    assert all(abs(score.error) < 0.35 for score in tpot)
    together = {item.source: item for item in summaries(tpot)}
    assert together["llama-3.1-70b on h200_sxm"].shared == 1
    found = document(scores, decisions(answers, (12.0, 20.0)), answers)
    assert found["answered"] == {
        "rows": 4,
        "answered": 3,
        "refused": {"prefill and decode apart: workers are not stated": 1},
    }
    json.dumps(found)


def test_products_of_degrees_are_read_as_what_they_are(rows: list[public_rows.PublicRow]) -> None:
    assert (rows[4].layout, rows[4].gpus) == (Layout(tp=8, ep=8), 8)


@pytest.mark.parametrize(
    ("degrees", "layout"),
    [
        ((64, 1, 8, 8), Layout(tp=8, ep=8)),
        ((4, 4, 1, 16), Layout(tp=4, ep=4)),
        ((1, 64, 8, 8), Layout(dp=8, ep=8)),
        ((8, 1, 8, 1), Layout(tp=8)),
        ((2, 2, 1, 4), Layout(tp=2, ep=2)),
    ],
)
def test_one_deployment_under_several_names(
    tmp_path: Path, degrees: tuple[int, ...], layout: Layout
) -> None:
    """As the same times stand in the file under tp and ep."""
    names = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    made = row(id="2026_04_06_a") | dict(zip(names, map(str, degrees), strict=True))
    (found,) = public_rows.read_rows(write(tmp_path / "silicon_sample.csv", [made]))
    assert found.layout == layout


@pytest.mark.parametrize(
    ("model", "engine", "mode", "weights", "small_cache"),
    [
        ("MiniMaxAI/MiniMax-M2.5", "vllm", "fp8", "fp8_block", False),
        ("meta-llama/Llama-3.1-70B", "vllm", "fp8", "float8_e4m3fn", True),
        ("moonshotai/Kimi-K2.5", "vllm", "nvfp4", "nvfp4", True),
        ("moonshotai/Kimi-K2.5", "vllm", "int4_wo", "int4", False),
        ("deepseek-ai/DeepSeek-R1", "trtllm", "fp8", "fp8_block", True),
        ("Qwen/Qwen3-32B", "trtllm", "", None, False),
    ],
)
def test_formats_are_those_of_the_checkpoints(
    tmp_path: Path, model: str, engine: str, mode: str, weights: str | None, *, small_cache: bool
) -> None:
    made = row() | {
        "model_path": model,
        "backend": engine,
        "gemm_quant_mode": mode,
        "moe_quant_mode": mode,
        "precision": "",
    }
    (found,) = public_rows.read_rows(write(tmp_path / "silicon_sample.csv", [made]))
    assert (found.weights, found.has_small_cache) == (weights, small_cache)


def test_the_peers_answers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "peer.jsonl"
    path.write_text(
        '{"id": "a", "ttft_ms": 1.5, "tpot_ms": 2.5}\n{"id": "b", "ttft_ms": null, "tpot_ms": null}\n'
    )
    assert public_rows.peer_times(path) == {"a": (1.5, 2.5)}
    path.write_text("no")
    with pytest.raises(FileFormatError, match="`peer`"):
        public_rows.peer_times(path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "other.csv", [{"a": 1}])
    with pytest.raises(FileFormatError, match="not a silicon_sample"):
        public_rows.read_rows(path)
