"""A rank that dies or fails ends the whole run in time, with its name, on every launcher."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from checkpoints import make_checkpoint

LONG = ["run", "embedded", "--tp", "2", "--prompt", "8", "--decode", "4000", "--ignore-eos"]
WEFT = [sys.executable, "-m", "weft"]


def start(command: list[str], **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )


def ranks_of(launcher: subprocess.Popen, count: int) -> list[psutil.Process]:
    """The rank processes, once all of them have used the processor for a while."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = psutil.Process(launcher.pid).children(recursive=True)
        ranks = [child for child in children if "weft" in " ".join(child.cmdline())]
        if len(ranks) == count and all(sum(r.cpu_times()[:2]) > 6 for r in ranks):
            return sorted(ranks, key=lambda rank: int(rank.environ()["RANK"]))
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.2)
    raise AssertionError("the ranks did not start")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_interrupt_leaves_no_process():
    launcher = start(WEFT + LONG)
    ranks = ranks_of(launcher, 2)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=5)
    assert launcher.returncode == 130
    assert not any(rank.is_running() for rank in ranks)


def test_ranks_die_with_a_killed_launcher():
    launcher = start(WEFT + LONG)
    ranks = ranks_of(launcher, 2)
    launcher.kill()
    launcher.communicate()
    _, alive = psutil.wait_procs(ranks, timeout=5)
    assert not alive


def test_an_error_of_one_rank_is_the_error_of_the_run(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    weights = checkpoint / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: random.randrange(100, len(content) // 2)])
    done = start([*WEFT, "run", str(checkpoint), "--tp", "2", "--ids", "1,2", "--decode", "2"])
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    assert "model.safetensors" in err


@pytest.mark.parametrize(
    ("by_srun", "layout"), [(False, ["--tp", "2"]), (True, ["--tp", "2", "--pp", "2"])]
)
def test_two_launchers_on_loopback_are_two_nodes(by_srun, layout):
    """Started by hand or as tasks of srun, each with one or two of the ranks."""
    words = ["run", "embedded", *layout, "--prompt", "4", "--decode", "3", "--format", "json"]
    words += ["--nnodes", "2"]
    port = str(free_port())
    step = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    launchers = [
        start([*WEFT, *words], **step, SLURM_PROCID=str(i))
        if by_srun
        else start([*WEFT, *words, "--master-port", port, "--node-rank", str(i)])
        for i in range(2)
    ]
    results = [launcher.communicate(timeout=90) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], results
    single = start([*WEFT, "run", "embedded", "--prompt", "4", "--decode", "3", "--format", "json"])
    expected, _ = single.communicate(timeout=60)
    assert _tokens(results[0][0]) == _tokens(expected)
    assert results[1][0] == ""


def _tokens(output: str):
    import json

    return [done["token_ids"] for done in json.loads(output)["completions"]]


def test_port_in_use_is_an_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [*LONG, "--nnodes", "2", "--node-rank", "0"]
        words += ["--master-port", str(taken.getsockname()[1])]
        launcher = start(WEFT + words)
        _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 3
    assert "--master-port" in err


def test_the_layout_must_match_the_launcher():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3"]
    launcher = start([*torchrun, "--standalone", "-m", "weft", *LONG])
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    assert "needs 2 ranks but the launcher started 3" in err


def test_foreign_files_stay_untouched(tmp_path: Path):
    done = start([*WEFT, "study", "--output", str(tmp_path / "missing")])
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out) == (2, "")
    assert "missing" in err


ENGINES_IN_A_ROW = """
import sys, weft
for last in range(3):
    with weft.LLM(sys.argv[1], weft.Layout(dp=2), timeout_s=10) as llm:
        done = llm.generate([[5, last], [6, last]], weft.SamplingParams(max_tokens=2))
    print([one.prompt_token_ids for one in done], flush=True)
"""


def test_a_job_runs_one_engine_after_another(tmp_path: Path):
    """The launcher's store still has the addresses and messages of the first one."""
    script = tmp_path / "job.py"
    script.write_text(ENGINES_IN_A_ROW)
    model = make_checkpoint(tmp_path / "model", "llama")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    job = start([*torchrun, "--standalone", str(script), str(model)])
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    expected = [str([(5, last), (6, last)]) for last in range(3)]
    assert sorted(re.findall(r"\[[^]]*\]", out)) == sorted(expected * 2)
