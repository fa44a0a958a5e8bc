"""A rank that freezes, dies or raises, at any moment, under any launcher.

Within 30 s there is one line of ours for each launcher (torchrun adds its own), it names
the rank and the true cause, and nothing is left running. Each run plants its fault by
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
    "raise": "RuntimeError: planted",
    "kill": "was killed by SIGKILL",
    "freeze": "does not answer (frozen or stuck",
}
QUICK = {("weft", "decode", "freeze"), ("two", "decode", "kill")}
CASES = [
    pytest.param(
        launcher,
        moment,
        how,
        marks=() if (launcher, moment, how) in QUICK else pytest.mark.faults,
        id=f"{launcher}-{moment}-{how}",
    )
    for launcher in ("weft", "two", "torchrun")
    for moment in ("start", "prefill", "decode")
    for how in CAUSES
]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def commands(launcher: str) -> list[list[str]]:
    weft = [sys.executable, "-m", "weft", *LONG]
    if launcher == "weft":
        return [weft]
    if launcher == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        return [[*torchrun, "--standalone", "-m", "weft", *LONG]]
    port = str(free_port())
    place = ["--nnodes", "2", "--master-port", port]
    return [[*weft, *place, "--node-rank", str(node)] for node in range(2)]


def run_with_fault(launcher: str, fault: str, folder: Path) -> tuple[list[int], list[str], float]:
    """(exit codes, stderr of each launcher, seconds from fault to last line); nothing is left."""
    fell = folder / "fell"
    path = os.pathsep.join([str(PLANTED), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"FAULT": fault, "FAULT_AT": str(fell), "PYTHONPATH": path}
    env["OMP_NUM_THREADS"] = "1"
    words = commands(launcher)
    errors = [folder / f"stderr-{number}" for number in range(len(words))]
    started = [start(command, env, error) for command, error in zip(words, errors, strict=True)]
    seen: dict[int, psutil.Process] = {}
    try:
        while any(process.poll() is None for process in started):
            assert not fell.exists() or time.time() - fell.stat().st_mtime < 240, "still running"
            _add_children(started, seen)
            time.sleep(0.1)
        _, alive = psutil.wait_procs(list(seen.values()), timeout=3)
        assert not alive, [process.cmdline() for process in alive]
    finally:
        for process in (*started, *seen.values()):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in started:
            process.wait()
    last_line = max(error.stat().st_mtime for error in errors)
    codes = [process.returncode for process in started]
    return codes, [error.read_text() for error in errors], last_line - fell.stat().st_mtime


def start(command: list[str], env: dict[str, str], error: Path) -> subprocess.Popen:
    with error.open("w") as file:
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=file)


def _add_children(started: list[subprocess.Popen], seen: dict[int, psutil.Process]) -> None:
    for launcher in started:
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(launcher.pid).children(recursive=True)
            seen.update({child.pid: child for child in children})


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("launcher", "moment", "how"), CASES)
def test_one_line_names_the_rank_and_the_true_cause(launcher, moment, how, tmp_path):
    codes, errors, seconds = run_with_fault(launcher, f"1:{moment}:{how}", tmp_path)
    print(f"{launcher} {moment} {how}: {seconds:.1f} s")
    assert not any("frame #" in error for error in errors), errors
    assert seconds < 30, errors
    if launcher == "torchrun":  # it names killed ranks itself, in a table, and exits with 1
        assert codes == [1]
        assert (CAUSES[how] if how != "kill" else "(SIGKILL)") in errors[0], errors
        return
    for code, error in zip(codes, errors, strict=True):
        lines = error.splitlines()
        assert (code, len(lines)) == (3, 1), errors
        assert "rank 1" in lines[0], errors
        assert CAUSES[how] in lines[0], errors
