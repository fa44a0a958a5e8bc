"""A rank that freezes, dies or raises, at any moment, under any launcher.

Within 30 s all has ended, with one line of ours for each launcher (torchrun adds its own) that
names the rank and the true cause. Each run plants its fault by
itself (tests/gloo/planted), so no test has to guess how far a rank has come.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PLANTED = Path(__file__).parent / "planted"
LONG = ["run", "embedded", "--tp", "2", "--prompt", "8", "--decode", "8000", "--ignore-eos"]
CAUSES = {
    "raise": "rank {}: RuntimeError: planted",
    "kill": "rank {} was killed by SIGKILL",
    "freeze": "rank {} does not answer (frozen or stuck",
}
ALONE = "rank {} failed alone, a step failed: RuntimeError: planted"
LAUNCHERS = ("weft", "two", "torchrun", "srun")
FAULTS = [(moment, how) for moment in ("start", "prefill", "decode") for how in CAUSES]
QUICK = {
    ("weft", 1, "work", "raise"),
    ("weft", 1, "decode", "freeze"),
    ("two", 1, "decode", "kill"),
    ("torchrun", 0, "decode", "kill"),
    ("srun", 0, "decode", "kill"),
}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.faults)
    for launcher in LAUNCHERS
    for victim in (0, 1)
    for fault in [*FAULTS, ("work", "raise")]
    for case in [(launcher, victim, *fault)]
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def commands(launcher: str) -> list[tuple[list[str], dict[str, str]]]:
    """Each process to start: its words and its environment."""
    weft = [sys.executable, "-m", "weft", *LONG]
    port = str(free_port())
    if launcher == "weft":
        return [(weft, {})]
    if launcher == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        return [([*torchrun, "--standalone", "-m", "weft", *LONG], {})]
    if launcher == "srun":
        return [(weft, task) for task in tasks_of_srun()]
    place = ["--nnodes", "2", "--master-port", port]
    return [([*weft, *place, "--node-rank", str(node)], {}) for node in range(2)]


def tasks_of_srun() -> list[dict[str, str]]:
    step = {
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]


def run_with_fault(launcher: str, fault: str, folder: Path) -> tuple[list[int], list[str], float]:
    """(exit codes, stderr of each process, seconds from fault to the last end); nothing is left."""
    fell = folder / "fell"
    path = os.pathsep.join([str(PLANTED), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"FAULT": fault, "FAULT_AT": str(fell), "PYTHONPATH": path}
    env["OMP_NUM_THREADS"] = "1"
    errors, started = [], []
    for number, (words, variables) in enumerate(commands(launcher)):
        errors.append(folder / f"stderr-{number}")
        started.append(start(words, env | variables, errors[-1]))
    seen: dict[int, psutil.Process] = {}
    try:
        while any(process.poll() is None for process in started):
            assert not fell.exists() or time.time() - fell.stat().st_mtime < 240, "still running"
            _add_children(started, seen)
            time.sleep(0.1)
        seconds = time.time() - fell.stat().st_mtime
        _, alive = psutil.wait_procs(list(seen.values()), timeout=3)
        assert not alive, [process.cmdline() for process in alive]
    finally:
        for process in (*started, *seen.values()):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in started:
            process.wait()
    codes = [process.returncode for process in started]
    return codes, [error.read_text() for error in errors], seconds


def start(command: list[str], env: dict[str, str], error: Path) -> subprocess.Popen:
    with error.open("w") as file:
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=file)


def _add_children(started: list[subprocess.Popen], seen: dict[int, psutil.Process]) -> None:
    for launcher in started:
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(launcher.pid).children(recursive=True)
            seen.update({child.pid: child for child in children})


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("launcher", "victim", "moment", "how"), CASES)
def test_one_line_names_the_rank_and_the_true_cause(launcher, victim, moment, how, tmp_path):
    codes, errors, seconds = run_with_fault(launcher, f"{victim}:{moment}:{how}", tmp_path)
    print(f"{launcher} rank {victim} {moment} {how}: {seconds:.1f} s")
    cause = (CAUSES[how] if moment != "work" else ALONE).format(victim)
    assert not any("frame #" in error for error in errors), errors
    assert seconds < 30, errors
    if launcher == "torchrun":  # it names killed ranks itself, in a table, and exits with 1
        assert codes == [1]
        assert (cause if how != "kill" else "(SIGKILL)") in errors[0], errors
    else:
        for code, error in zip(codes, errors, strict=True):
            assert (code, len(error.splitlines())) == (3, 1), errors
            assert cause in error, errors


SCRIPT = """
import sys, weft
with weft.LLM("embedded", weft.Layout(tp=2)) as llm:
    sampling = weft.SamplingParams(max_tokens=8000, ignore_eos=True)
    llm.generate([[5] * 8], sampling, on_step=lambda _: print(flush=True))
"""


def end_of_the_other(
    words: list[list[str]], envs: list[dict[str, str]], victim: int, folder: Path
) -> tuple[int, str]:
    """Exit code and stderr of one process after the other was frozen in the middle of its run."""
    started, outputs = [], [folder / f"stdout-{i}" for i in range(2)]
    errors = [folder / f"stderr-{i}" for i in range(2)]
    try:
        for i in range(2):
            with outputs[i].open("w") as output, errors[i].open("w") as error:
                env = os.environ | {"OMP_NUM_THREADS": "1"} | envs[i]
                started.append(subprocess.Popen(words[i], env=env, stdout=output, stderr=error))
        while not outputs[0].stat().st_size:
            assert started[0].poll() is None, errors[0].read_text()
            time.sleep(0.1)
        started[victim].send_signal(signal.SIGSTOP)
        return started[1 - victim].wait(timeout=40), errors[1 - victim].read_text()
    finally:
        for process in started:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_a_script_of_srun_names_the_frozen_rank(victim, tmp_path):
    """No launcher is there, and rank 0 holds the store."""
    words = [[sys.executable, "-c", SCRIPT]] * 2
    code, error = end_of_the_other(words, tasks_of_srun(), victim, tmp_path)
    assert code == 3
    assert error.startswith(f"weft: error: rank {1 - victim}: rank {victim} does not answer"), error
    assert len(error.splitlines()) == 1, error


@pytest.mark.faults
def test_a_frozen_launcher_ends_the_run(tmp_path):
    """Machine 0's launcher holds the store of the launchers and of the ranks."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = "from weft.launch.elastic import *; import sys; run_ranks([sys.argv[1]], Launch("
    launch += "ranks_per_node=1, num_nodes=2, node_rank=int(sys.argv[2]), master_port={}))"
    program = launch.format(free_port())
    words = [[sys.executable, "-c", program, str(script), str(i)] for i in range(2)]
    code, error = end_of_the_other(words, [{}, {}], 0, tmp_path)
    assert code
    assert re.search(r"(machine|rank) 0 does not answer", error.splitlines()[-1]), error
