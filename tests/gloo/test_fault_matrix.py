"""A rank that freezes, dies or raises, at any moment, under any launcher.

Within 30 s all has ended, with one line of ours for each launcher (torchrun adds its own) that
names the rank and the true cause. Each run plants its fault by
itself (tests/gloo/planted), so no test has to guess how far a rank has come.
"""

from __future__ import annotations

import contextlib
import os
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
SRUN_WAITS_S = 12
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
        tasks = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": port}
        return [(weft, tasks | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in range(2)]
    place = ["--nnodes", "2", "--master-port", port]
    return [([*weft, *place, "--node-rank", str(node)], {}) for node in range(2)]


def run_with_fault(launcher: str, fault: str, folder: Path) -> tuple[list[int], list[str], float]:
    """(exit codes, stderr of each process, seconds from fault to the last end); nothing is left.

    As ``srun --kill-on-bad-exit`` does, the first task that fails ends the others, a while later.
    """
    fell = folder / "fell"
    path = os.pathsep.join([str(PLANTED), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"FAULT": fault, "FAULT_AT": str(fell), "PYTHONPATH": path}
    env["OMP_NUM_THREADS"] = "1"
    errors, started = [], []
    for number, (words, variables) in enumerate(commands(launcher)):
        errors.append(folder / f"stderr-{number}")
        started.append(start(words, env | variables, errors[-1]))
    seen: dict[int, psutil.Process] = {}
    failed_at = 0.0
    try:
        while any(process.poll() is None for process in started):
            assert not fell.exists() or time.time() - fell.stat().st_mtime < 240, "still running"
            _add_children(started, seen)
            if any(process.poll() for process in started):
                failed_at = failed_at or time.time()
                if launcher == "srun" and time.time() - failed_at > SRUN_WAITS_S:
                    for process in started:
                        process.kill()
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
    elif launcher == "srun":  # it names killed tasks itself; their peers say whom they miss
        assert (3 in codes) or (moment, how) == ("start", "kill")
        if how == "kill" and moment != "start":  # before they meet, srun alone sees it
            cause = f"lost rank {victim}"
        if (moment, how) != ("start", "kill"):
            assert cause in "".join(errors), errors
        assert all(len(error.splitlines()) <= 1 for error in errors), errors
    else:
        for code, error in zip(codes, errors, strict=True):
            assert (code, len(error.splitlines())) == (3, 1), errors
            assert cause in error, errors
