"""The plugin in a real vLLM on this machine's processors: the same tokens, by weft's all-reduce."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from weft.plugins.switch import VARIABLE

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]

SOURCE = Path(__file__).parents[2] / "src"
LIMIT_S = 600
SCRIPT = """
import json, os, signal, subprocess, sys, threading, time
from vllm import LLM, SamplingParams

def kill_worker_1():
    time.sleep(0.5)
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    mine = {str(os.getpid())}
    for pid, parent, name in (line.split(None, 2) for line in listed.stdout.splitlines()):
        if parent in mine:
            mine.add(pid)
            if "Worker_TP1" in name:
                os.kill(int(pid), signal.SIGKILL)

def main():
    llm = LLM(model=sys.argv[1], load_format="dummy", skip_tokenizer_init=True, max_model_len=256,
              tensor_parallel_size=2, dtype="float32", enforce_eager=True, enable_prefix_caching=False)
    prompts = [{"prompt_token_ids": [(37 * i + 11 * j) % 900 + 3 for j in range(5 + 7 * i)]}
               for i in range(6)]
    sampling = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, detokenize=False)
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    print("TOKENS", json.dumps([list(o.outputs[0].token_ids) for o in outputs]), flush=True)
    if sys.argv[2] == "lose":
        threading.Thread(target=kill_worker_1).start()
        sampling = SamplingParams(temperature=0, max_tokens=240, ignore_eos=True, detokenize=False)
        while True:
            llm.generate(prompts[:1], sampling, use_tqdm=False)

if __name__ == "__main__":
    main()
"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "hidden_act": "silu",
}


def run(python: Path, folder: Path, choice: str, then: str) -> tuple[list[list[int]], str]:
    """(tokens, everything the engine said), WEFT_ALL_REDUCE being ``choice``.

    then: "end", or "lose" a worker while it generates more.
    """
    info = folder / "entry" / "weft-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weft\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nweft = weft.plugins.entry:vllm\n"
    )
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG))
    (folder / "run.py").write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": f"{info.parent}:{SOURCE}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        VARIABLE: choice,
    }
    process = subprocess.run(
        [str(python), str(folder / "run.py"), str(folder / "model"), then],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    said = process.stdout + process.stderr
    line = next((line for line in said.splitlines() if line.startswith("TOKENS ")), None)
    assert line is not None, said[-3000:]
    return json.loads(line[7:]), said


def test_the_tokens_are_those_of_stock_vllm_and_a_lost_worker_is_named(
    vllm_python: Path, tmp_path: Path
) -> None:
    stock, said = run(vllm_python, tmp_path, "0", "end")
    assert "weft: " not in said
    weft, said = run(vllm_python, tmp_path, "1", "lose")
    assert "by weft" in said
    assert weft == stock
    assert "LostRankError: lost rank 1 in step" in said
