"""Every option of every command with values that it cannot take: what comes of each.

Each try is a fork of one process that has loaded weft, in a folder of its own, with bounded
memory and processor time. What would start processes, listen or call a server ends it there.

    [WEFT_HOSTILE_EVERY=3] python tests/hostile_options.py [COMMAND] [OPTION]     prints every try
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing.process
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from typer.main import get_command

os.environ["HF_HUB_OFFLINE"] = "1"

from weft import api
from weft.bench.serving import session
from weft.calibration import calibrate_accelerator
from weft.cli import main
from weft.cli.default_group import DEFAULT
from weft.engine import llm
from weft.importer import importing  # noqa: F401
from weft.launch import elastic
from weft.prediction import serving  # noqa: F401
from weft.serve import app, http_server  # noqa: F401
from weft.tracing import dry_run

TRACES = Path(__file__).parent / "data" / "traces"
CPU_S, WALL_S, MEMORY_BYTES = 15, 120, 3 * 2**30
WOULD_START, CRASHED = 77, 99
RESULTS = "results"
LONG = "x" * 300

"""Values; what begins with a hyphen would be taken for an option."""
WHOLE = ["x", "", "-1", "0", "99999999999", "9" * 30, "nan"]
NUMBERS = ["x", "", "-1", "0", "99999999999", "nan", "inf", "-inf", "1e-300"]
TEXTS = ["", " ", "99999999999", "ünï✓", ",", "missing/x", ".", LONG, "a\nb"]
PATHS = ["", "missing/x", ".", "ünï✓/x", "99999999999", "text.txt", LONG]
"""Only inside the folder of the try: some of these are written to."""

SHORT = ["embedded", "--prompt", "4", "--decode", "2"]
SERVER = ["--accelerator", "h200-sxm", "--requests", "4"]
COMMANDS: dict[str, list[str]] = {
    "run": SHORT,
    "trace": [*SHORT, "--dry-run"],
    "predict": ["llama-3.1-8b", *SERVER, "--concurrency", "2"],
    "predict scoreboard": [],
    "predict scaling": ["--models", "llama-3.1-8b", "--gpus", "4"],
    "predict allreduce": ["--sizes", "8K"],
    "plan": ["llama-3.1-8b", "--gpus", "2"],
    "models": [],
    "fabrics": [],
    "doctor": [],
    "study": ["--prompt", "4", "--decode", "2"],
    "study engines": ["--layouts", "1", "--show"],
    "calibrate": [],
    "calibrate accelerator": [],
    "import": ["rank0.json.gz", "rank1.json.gz"],
    "report": ["schedule.json"],
    "serve": ["embedded"],
    "bench allreduce": [],
    "bench decode": ["embedded", "--case", "1x4", "--decode", "2", "--repeats", "1"],
    "bench serve": ["--url", "http://127.0.0.1:9", "--concurrency", "1"],
}
BESIDE = {
    ("run", "--text"): ["embedded", "--decode", "2"],
    ("run", "--ids"): ["embedded", "--decode", "2"],
    ("run", "--seed"): [*SHORT, "--temperature", "1"],
    ("run", "--top-k"): [*SHORT, "--temperature", "1"],
    ("run", "--top-p"): [*SHORT, "--temperature", "1"],
    ("predict", "--rate"): ["llama-3.1-8b", *SERVER],
    ("predict", "--trace"): ["llama-3.1-8b", *SERVER],
    ("predict", "--burst"): ["llama-3.1-8b", *SERVER, "--rate", "2"],
    ("bench serve", "--trace"): ["--url", "http://127.0.0.1:9"],
}
"""What stands beside an option that excludes, or means nothing without, others."""


class Started(BaseException):
    """The command got as far as starting something."""


@dataclass(frozen=True, kw_only=True)
class Try:
    command: str
    option: str
    value: str
    code: int
    error: str

    @property
    def problem(self) -> str | None:
        """Why this is no good end; None where it is refused in one line, or works."""
        if self.code in (0, WOULD_START):
            return None
        lines = self.error.strip().splitlines()
        if self.code not in (1, 2, 3) or len(lines) != 1 or not lines[0].startswith("weft: error:"):
            return f"exit code {self.code}: {self.error.strip()[-300:]!r}"
        if "does not take a value" in lines[0]:
            return None
        name = "n?node" if self.option == "--nnodes" else self.option.lstrip("-").rstrip("s")
        is_named = not self.option.startswith("--") or re.search(rf"\b{name}", lines[0])
        if not is_named and not re.search("file|File|folder", lines[0]):
            return f"does not name {self.option}: {lines[0]}"
        if not any(text in lines[0] for text in _spellings(self.value)):
            return f"does not name {self.value!r}: {lines[0]}"
        return None


def _spellings(value: str) -> list[str]:
    plain = " ".join(value.split())
    spelled = [plain, value, repr(value)[1:-1], short(value), *value.split(",")]
    try:
        return [*spelled, str(float(value))]
    except ValueError:
        return spelled


def leaves() -> dict[str, Any]:
    """The commands that do something, by their words."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        below = dict(getattr(command, "commands", {}))
        own = below.pop(DEFAULT, None if below and not command.callback else command)
        if own is not None and words:
            yield " ".join(words), own
        for name, child in below.items():
            yield from walk(child, (*words, name))

    return {name: command for name, command in walk(get_command(main.app), ()) if name != "bench"}


def tries(name: str, command: Any) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """(option, its values with the words to try) for every option and argument of a command."""
    for parameter in command.params:
        if parameter.name in ("help", "version"):
            continue
        option = max(parameter.opts, key=len)
        words = BESIDE.get((name, option), COMMANDS[name])
        before = [*name.split(), *words]
        if parameter.param_type_name == "argument":
            given = words and not words[0].startswith("-")
            yield (
                option,
                [(v, [*name.split(), v, *words[bool(given) :]]) for v in _values(parameter)],
            )
        else:
            yield option, [(v, [*before, f"{option}={v}"]) for v in _values(parameter)]


def _values(parameter: Any) -> list[str]:
    kind = str(parameter.type_descriptor.annotation)
    if getattr(parameter, "is_flag", False):
        return ["x"]
    if "Path" in kind:
        return PATHS
    if "float" in kind:
        return NUMBERS
    return WHOLE if "int" in kind else TEXTS


def run(name: str, option: str, given: list[tuple[str, list[str]]]) -> Iterator[Try]:
    """Each (value, words) in one fork, or in a new one after a value that has ended it."""
    while given:
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder))
            child = os.fork()
            if not child:
                try:
                    _in_the_fork([words for _, words in given], Path(folder))
                finally:
                    os._exit(0)
            _wait(child)
            done = [json.loads(line) for line in (Path(folder) / RESULTS).read_text().splitlines()]
        done = done or [[-9, "took too long or too much memory"]]
        for (value, _), (code, error) in zip(given, done, strict=False):
            yield Try(command=name, option=option, value=value, code=code, error=error)
        given = given[len(done) :]


def _wait(child: int) -> None:
    end = time.monotonic() + WALL_S
    while not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.002)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)


def _in_the_fork(lines: list[list[str]], folder: Path) -> None:
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with Path(RESULTS).open("w") as results:
        _stop_before_anything_starts()
        for words in lines:
            _bound()
            with Path("stderr").open("w") as error:
                os.dup2(error.fileno(), 2)
            code = _code(words)
            sys.stderr.flush()
            text = Path("stderr").read_text(errors="replace")
            results.write(json.dumps([code, text]) + "\n")
            results.flush()


def _code(words: list[str]) -> int:
    try:
        return main.run(words)
    except Started:
        return WOULD_START
    except BaseException:
        traceback.print_exc()
        return CRASHED


def _bound() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_S, spent + CPU_S))


def _stop_before_anything_starts() -> None:
    def start(*_: Any, **__: Any) -> None:
        raise Started

    elastic.run_ranks = subprocess.Popen = multiprocessing.process.BaseProcess.start = start
    session.run_event_loop = http_server.HttpServer.__init__ = start
    calibrate_accelerator.fit_accelerator = llm.Engine = dry_run._stage_rows = start


def write_files(folder: Path) -> None:
    """What the tries can name: text, two traces and a schedule."""
    (folder / "text.txt").write_text("no JSON\n")
    for rank in range(2):
        trace = TRACES / f"vllm_cpu_tp2_rank{rank}.json.gz"
        shutil.copy(trace, folder / f"rank{rank}.json.gz")
    (folder / "schedule.json").write_text(json.dumps(api.predict("embedded").to_dict()))


def all_tries(commands: list[str], options: list[str], every: int) -> Iterator[Try]:
    """every: one value in so many, another one for the next option."""
    found = leaves()
    assert set(found) == set(COMMANDS), set(found) ^ set(COMMANDS)
    for name in commands or found:
        for number, (option, given) in enumerate(tries(name, found[name])):
            if not options or option in options:
                yield from run(name, option, given[number % every :: every])


if __name__ == "__main__":
    faulthandler.disable()
    wanted = sys.argv[1:]
    options = [word for word in wanted if word.startswith("-")]
    names = [word for word in wanted if word not in options]
    for one in all_tries(names, options, int(os.environ.get("WEFT_HOSTILE_EVERY", "1"))):
        record = {**vars(one), "problem": one.problem}
        print(json.dumps(record, ensure_ascii=False), flush=True)
