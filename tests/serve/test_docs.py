"""The pages: every block of Python runs, every command is one that the parser takes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from weft.cli import main
from weft.cli.messages import command_of

ROOT = Path(__file__).parents[2]
PAGES = [
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "lab-log.md"),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
]
QUICK = ("predict", "plan", "models", "fabrics")
SLOW = ("predict scoreboard", "predict scaling")


def blocks(page: Path, *kinds: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [content for kind, content in fenced if kind in kinds]


@pytest.fixture(scope="module")
def mock_url() -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tests" / "mock_server.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.mark.parametrize("name", ["library.md", "predict.md"])
def test_blocks_of_python_run(name, mock_url, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(ROOT / "docs" / name, "python"):
        exec(compile(block.replace("http://127.0.0.1:8000", mock_url), name, "exec"), {})


def test_the_readme_shows_blocks_that_run():
    assert set(blocks(ROOT / "README.md", "python")) <= set(
        blocks(ROOT / "docs/library.md", "python")
    )


def commands(lines: str) -> set[str]:
    """Every ``weft …`` of the lines, however it is started."""
    start = r"(?:\$ |\w+=\S+ |(?:srun|torchrun) .*)?(?:python )?(?:-m )?weft ([^#>&|;]*)"
    found = (re.match(start, line.strip()) for line in lines.replace("\\\n", " ").splitlines())
    return {one[1].replace("…", "").strip() for one in found if one is not None}


def in_blocks(page: Path) -> set[str]:
    return commands("".join(blocks(page, "", "sh", "bash")))


def in_prose(page: Path) -> set[str]:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return commands("\n".join(re.findall(r"`([^`]*)`", prose.replace("\n", " "))))


EVERY = sorted({(page.name, line) for page in PAGES for line in in_blocks(page) | in_prose(page)})


@pytest.mark.parametrize(("page", "line"), EVERY)
def test_commands_are_ones_that_weft_has(page, line):
    words = shlex.split(line)
    command = command_of(words, get_command(main.app))
    known = {
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in known | {"--help", "-h", "--version"}, word


RUN = sorted({line for page in PAGES for line in in_blocks(page) if line.startswith(QUICK)})


@pytest.mark.parametrize("line", RUN)
def test_quick_commands_run(line, tmp_path, monkeypatch, capsys):
    if line.startswith(SLOW):
        pytest.skip("has a test of its own")
    monkeypatch.chdir(tmp_path)
    assert main.run(shlex.split(line)) == 0, capsys.readouterr().err


def test_architecture_names_what_is_there():
    text = " ".join((ROOT / "ARCHITECTURE.md").read_text().split())
    named = re.findall(r"`([a-z_0-9/]+\.py)(?:: ([\w.]+))?`", text)
    assert len(named) > 20
    for file, name in named:
        path = ROOT / file if file.startswith("tests") else ROOT / "src" / "weft" / file
        for part in filter(None, name.split(".")):
            assert re.search(rf"(class|def) {part}\b", path.read_text()), f"{file}: {part}"
        assert path.exists()
