"""Accelerator files, engine profiles, calibration, and what importing the predictor costs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from weft.calibration.calibrate_accelerator import (
    CPU_SIZES,
    GPU_SIZES,
    Sizes,
    calibrate_accelerator,
    doubts,
    fit_accelerator,
)
from weft.calibration.device_timer import DeviceTimer
from weft.errors import EnvironmentUnavailable, FileFormatError, UserError
from weft.prediction.accelerator import (
    BUILTIN_ACCELERATORS,
    Accelerator,
    accelerator_from_json,
    accelerator_to_json,
    load_accelerator,
)
from weft.prediction.engine_profile import profile_from_json, profile_named
from weft.prediction.machines import machine_named


@pytest.mark.parametrize("name", BUILTIN_ACCELERATORS)
def test_accelerator_files_round_trip(name: str, tmp_path: Path) -> None:
    accelerator = load_accelerator(name)
    assert accelerator_from_json(accelerator_to_json(accelerator)) == accelerator
    path = tmp_path / "device.json"
    path.write_text(json.dumps(accelerator_to_json(accelerator)))
    assert load_accelerator(str(path)) == accelerator
    assert machine_named("vllm", str(path), "h200-nvlink").accelerator == accelerator


def broken(change: Any) -> dict[str, Any]:
    document = accelerator_to_json(load_accelerator("h200-sxm"))
    change(document)
    return document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("schema"), "not an accelerator file"),
        (lambda d: d.pop("memory_gb"), "memory_gb"),
        (lambda d: d.update(color=1), "color"),
        (lambda d: d.update(memory_gb=80), "must be an object"),
        (lambda d: d["stream_gb_s"].update(value=0), "stream_gb_s: value must be above 0"),
        (lambda d: d["stream_gb_s"].update(value=float("nan")), "must be >= 0"),
        (lambda d: d["stream_gb_s"].update(origin="guess"), "origin 'guess'"),
        (lambda d: d["stream_gb_s"].pop("source"), "source"),
    ],
)
def test_damaged_accelerator_files_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(json.dumps(broken(change)))
    with pytest.raises(FileFormatError, match=message):
        load_accelerator(str(path))


def test_text_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text("{")
    with pytest.raises(FileFormatError, match=r"device\.json"):
        load_accelerator(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("schema"), "not an engine profile"),
        (lambda d: d.update(colour=1), "colour"),
        (lambda d: d.update(all_reduce="magic"), "all_reduce"),
        (lambda d: d.update(conventions="magic"), "conventions"),
    ],
)
def test_damaged_profiles_are_refused(change: Any, message: str) -> None:
    file = resources.files("weft.prediction") / "data" / "engines" / "vllm.json"
    document = json.loads(file.read_text())
    change(document)
    with pytest.raises(FileFormatError, match=message):
        profile_from_json(document)


def test_every_number_of_the_vllm_profile_names_its_data() -> None:
    for item in profile_named("vllm").quantities().values():
        assert len(item.source) > 10


class KnownTimer:
    """A device whose answers follow the terms of an :class:`Accelerator` exactly."""

    name, method, element_bytes, memory_gb = "known", "a formula", 2, 149.3

    def __init__(self, truth: Accelerator, heads: int, head_dim: int) -> None:
        self.truth, self.width = truth, heads * head_dim

    def matmul_us(self, rows: int, n: int, k: int) -> float:
        traffic = (n * k + rows * (n + k)) * self.element_bytes
        memory = traffic * 1e-3 / self.truth.stream_gb_s.value
        compute = 2 * rows * n * k * 1e-6 / self.truth.matmul_tflops.value
        return self.truth.matmul_call_us.value + max(memory, compute)

    def matmul8_us(self, rows: int, n: int, k: int) -> float | None:
        compute = 2 * rows * n * k * 1e-6 / self.truth.matmul8_tflops.value
        return self.truth.matmul_call_us.value + compute

    def copy_us(self, num_bytes: int) -> float:
        return 2 * num_bytes * 1e-3 / self.truth.copy_gb_s.value

    def decode_attention_us(self, sequences: int, context: int) -> float:
        traffic = 2 * sequences * context * self.width * self.element_bytes
        return self.truth.attention_call_us.value + traffic * 1e-3 / self.truth.cache_gb_s.value

    def prefill_attention_us(self, tokens: int) -> float:
        ramp = self.truth.attention_ramp_tokens.value
        rate = self.truth.attention_tflops.value * tokens / (tokens + ramp)
        return self.truth.attention_call_us.value + 2 * tokens**2 * self.width * 1e-6 / rate

    def elementwise_us(self) -> float:
        return self.truth.elementwise_call_us.value

    def launch_us(self) -> float:
        return self.truth.launch_us.value

    def host_step_us(self) -> float:
        return self.truth.host_step_us.value


def slow_device() -> Accelerator:
    """A device on which the CPU's small sizes take as long as they do there."""
    slow = {
        "matmul_tflops": 0.5,
        "matmul8_tflops": 1.0,
        "stream_gb_s": 20.0,
        "cache_gb_s": 15.0,
        "copy_gb_s": 12.0,
        "attention_tflops": 0.3,
        "attention_ramp_tokens": 100.0,
    }
    base = load_accelerator("h200-sxm")
    changes: dict[str, Any] = {
        name: replace(getattr(base, name), value=value) for name, value in slow.items()
    }
    return replace(base, **changes)


@pytest.mark.parametrize(
    ("truth", "sizes"),
    [(load_accelerator("h200-sxm"), GPU_SIZES), (slow_device(), CPU_SIZES)],
    ids=["gpu", "cpu"],
)
def test_calibration_recovers_a_known_device(truth: Accelerator, sizes: Sizes) -> None:
    timer = KnownTimer(truth, sizes.attention_heads, sizes.attention_head_dim)
    found = fit_accelerator(timer, sizes)
    for field, item in truth.quantities().items():
        if field != "memory_gb":
            got = found.quantities()[field].value
            assert got == pytest.approx(item.value, rel=0.02), field


def test_times_that_no_line_explains_still_make_a_positive_device() -> None:
    class Odd(KnownTimer):
        def matmul_us(self, rows: int, n: int, k: int) -> float:
            return 1e-6 * (n * k) ** 1.5

        def prefill_attention_us(self, tokens: int) -> float:
            return 1e-9 * tokens**3.5

    timer = Odd(slow_device(), CPU_SIZES.attention_heads, CPU_SIZES.attention_head_dim)
    found = fit_accelerator(timer, CPU_SIZES)
    assert accelerator_from_json(accelerator_to_json(found)) == found


def test_numbers_that_contradict_each_other_are_doubted() -> None:
    device = load_accelerator("h200-sxm")
    assert doubts(device) is None
    fast = replace(device.attention_tflops, value=2000.0)
    assert "attention at 2e+03" in str(doubts(replace(device, attention_tflops=fast)))
    slow = replace(device.launch_us, value=900.0)
    assert "a launch of 900" in str(doubts(replace(device, launch_us=slow)))


def test_calibration_of_this_cpu_makes_a_usable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Sizes(
        streams=((64, 64), (128, 128), (256, 256)),
        matmul=(32, 128, 128),
        copy_bytes=1 << 20,
        decode=((1, 32), (2, 64)),
        prefill_tokens=(16, 32),
        attention_heads=2,
        attention_head_dim=16,
    )
    monkeypatch.setattr("weft.calibration.calibrate_accelerator.CPU_SIZES", small)
    parts: list[str] = []
    found = calibrate_accelerator("cpu", parts.append)
    assert accelerator_from_json(accelerator_to_json(found)) == found
    assert parts == ["matrix products", "memory", "attention", "launches"]
    assert found.matmul8_tflops.value == 0


def test_a_missing_device_says_what_to_do() -> None:
    with pytest.raises(EnvironmentUnavailable, match="use `device` cpu"):
        DeviceTimer("cuda:7")
    for name in ("banana", "meta", "cuda:x"):
        with pytest.raises(UserError, match="write cpu, cuda or cuda:1"):
            DeviceTimer(name)


PREDICTOR = "import weft.prediction.latency, weft.prediction.machines"
PLANNER = (
    "import weft.prediction.serving, weft.calibration.scoreboard, weft.planning.scale_study\n"
    "import weft.planning.planner, weft.planning.explain, weft.planning.what_if, weft.planning.launch_commands"
)


def imported(code: str) -> tuple[float, list[str]]:
    """Processor seconds of an import in a fresh interpreter, and the heavy modules it loads."""
    script = (
        "import json, sys, time\nstart = time.process_time()\n" + code + "\n"
        "spent = time.process_time() - start\n"
        "heavy = {'torch', 'transformers', 'jinja2', 'huggingface_hub'} & set(sys.modules)\n"
        "print(json.dumps([spent, sorted(heavy)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    spent, heavy = json.loads(done.stdout)
    return spent, heavy


def test_importing_the_predictor_takes_little_time() -> None:
    assert min(imported(PREDICTOR)[0] for _ in range(5)) < 0.3


def test_predictor_and_planner_need_no_torch() -> None:
    assert imported(PREDICTOR + "\n" + PLANNER)[1] == []
