"""``weft study engines`` with weft and a real vLLM on this machine's processors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from study_engines import run_study

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]


def test_weft_and_vllm_on_one_layout(vllm_python: Path, tmp_path: Path) -> None:
    served = [str(vllm_python), "-c", "import uvicorn, vllm"]
    if subprocess.run(served, check=False, capture_output=True, timeout=300).returncode:
        pytest.skip(f"{vllm_python} has no uvicorn: its vLLM cannot serve")
    study = run_study(str(vllm_python), "tp2", tmp_path)
    assert [case["name"] for case in study["cases"]] == [
        "weft-tp2-prefill-heavy",
        "weft-tp2-decode-heavy",
        "vllm-cpu-tp2-prefill-heavy",
        "vllm-cpu-tp2-decode-heavy",
    ]
    assert "weft tp2" in (tmp_path / "report.html").read_text()
