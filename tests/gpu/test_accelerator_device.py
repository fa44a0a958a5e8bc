"""``weft calibrate accelerator`` on a GPU: every number positive and of a GPU's size."""

from __future__ import annotations

import time

import pytest

from weft.calibration.calibrate_accelerator import calibrate_accelerator
from weft.prediction.accelerator import accelerator_from_json, accelerator_to_json

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def test_a_gpu_is_measured_in_a_minute() -> None:
    start = time.monotonic()
    found = calibrate_accelerator("cuda")
    assert time.monotonic() - start < 60
    assert accelerator_from_json(accelerator_to_json(found)) == found
    values = {name: item.value for name, item in found.quantities().items()}
    assert 0.5 < values["copy_gb_s"] / values["stream_gb_s"] < 2
    assert 0.2 < values["matmul_call_us"] < 30
    assert 0.2 < values["elementwise_call_us"] < 10
    assert values["attention_tflops"] < values["matmul_tflops"]
    assert values["launch_us"] < values["host_step_us"]
