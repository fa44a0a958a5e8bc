"""Imports point one way, and torch stays out of what must be light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "weft"

# What each package may import. A name stands for the package of that name.
LIGHT = {"errors", "vocabulary"}
ALLOWED = {
    "vocabulary": {"errors"},
    "closed_form": LIGHT,
    "scheduling": LIGHT,
    "fabric": LIGHT,
    "allreduce": LIGHT | {"fabric"},
    "report": LIGHT,
    "importer": LIGHT | {"closed_form", "report"},
    "prediction": LIGHT | {"closed_form", "scheduling", "fabric", "allreduce", "report"},
    "planning": LIGHT | {"closed_form", "fabric", "allreduce", "prediction", "report"},
    "calibration": LIGHT
    | {"closed_form", "scheduling", "fabric", "allreduce", "prediction", "planning", "api"},
    "launch": {"errors"},
    "kernels": LIGHT | {"fabric", "allreduce"},
    "plugins": LIGHT | {"comm", "kernels"},
    "comm": LIGHT | {"launch", "fabric", "allreduce", "kernels"},
    "layers": LIGHT | {"comm"},
    "models": LIGHT | {"layers"},
    "engine": LIGHT | {"launch", "comm", "layers", "models", "scheduling"},
    "tracing": LIGHT | {"closed_form", "comm", "layers", "models", "engine"},
    "bench": LIGHT
    | {"launch", "comm", "fabric", "allreduce", "kernels", "engine", "tracing", "report"},
    "serve": LIGHT | {"launch", "comm", "engine", "tracing"},
    "study": LIGHT
    | {
        "closed_form",
        "launch",
        "comm",
        "engine",
        "tracing",
        "report",
        "prediction",
        "fabric",
        "bench",
        "importer",
    },
}
EVERYTHING = {"cli", "__main__", "__init__", "api"}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("weft."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("weft.")}
    return names


def files():
    return [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] != "cli"]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if package in EVERYTHING:
        return
    if package == "errors":
        assert imported_packages(path) == set()
        return
    allowed = ALLOWED[package] | {package}
    assert imported_packages(path) <= allowed, f"{path} imports {imported_packages(path) - allowed}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_one_door_for_communication(path):
    """Only the door and what stands behind it touch torch.distributed's operations."""
    package = path.relative_to(SOURCE).parts[0]
    if package in ("comm", "kernels", "launch"):
        return
    found = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(a.name == "torch.distributed" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "torch.distributed")
    ]
    assert not found


@pytest.mark.parametrize(
    "module",
    [
        "weft",
        "weft.cli.main",
        "weft.closed_form.schedule",
        "weft.fabric.fabric",
        "weft.importer",
        "weft.planning",
        "weft.prediction",
        "weft.report",
    ],
)
def test_torch_is_not_imported(module):
    assert not imports(module, "torch")


def test_the_command_line_starts_without_jinja2():
    assert not imports("weft.cli.main", "jinja2")


def imports(module: str, name: str) -> bool:
    code = f"import sys, {module}; sys.exit('{name}' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode != 0


def test_errors_of_the_library_do_not_speak_of_options() -> None:
    """They name arguments in backticks; cli/messages.py turns those into options."""
    commands = ("nsys export", "weft plan")
    for path in SOURCE.rglob("*.py"):
        if "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Raise):
                continue
            texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            text = "".join(part for part in texts if isinstance(part, str))
            is_option = re.search(r"(?<![\w-])--[a-z]", text)
            assert not is_option or any(c in text for c in commands), f"{path}: {text}"


def test_a_name_has_one_meaning() -> None:
    """No two public classes of the house have the same name."""
    places: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
