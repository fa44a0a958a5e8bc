"""What is published: every file that the code reads, nothing that tests need, one version."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import weft

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_has_every_file_and_no_test_server():
    patterns = ["*.py", *(one.removeprefix("**/") for one in data())]
    for path in (ROOT / "src" / "weft").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert any(fnmatch(path.name, pattern) for pattern in patterns), path
            assert not re.search(r"mock|fake|conftest|test_", path.name), path


def data() -> list[str]:
    return PROJECT["tool"]["setuptools"]["package-data"]["weft"]


def test_nothing_is_compiled_at_install():
    assert PROJECT["build-system"]["requires"] == ["setuptools>=77"]
    assert "ext-modules" not in PROJECT["tool"]["setuptools"]
    gpu = PROJECT["project"]["optional-dependencies"]["gpu"]
    assert all("sys_platform == 'linux'" in one for one in gpu)


def test_one_version_everywhere():
    assert "version" in PROJECT["project"]["dynamic"]
    citation = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert citation[1] == weft.__version__
    assert f"## [{weft.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_reference_names_what_is_exported():
    named = re.findall(r"^::: (\S+)\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert {(weft._HOMES[name], name) for _, name in named if name != "errors"} == {
        one for one in named if one[1] != "errors"
    }
