"""A family is a row of one table: nobody else asks a model for its family's name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from weft.vocabulary.families import FAMILIES

SOURCE = Path(__file__).parents[2] / "src" / "weft"
TABLE = set((SOURCE / "vocabulary" / "families").glob("*.py"))


def family_uses(tree: ast.AST) -> list[str]:
    """Comparisons, matches and look-ups that involve a family's name or ``spec.family``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            parts = [node.slice]
        elif isinstance(node, ast.Match):
            parts = [node.subject]
        else:
            continue
        for part in (leaf for side in parts for leaf in ast.walk(side)):
            is_name = isinstance(part, ast.Constant) and part.value in FAMILIES
            is_field = (
                isinstance(part, ast.Attribute)
                and part.attr == "family"
                and isinstance(part.value, ast.Name)
                and part.value.id == "spec"
            )
            if is_name or is_field:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    "path", sorted(set(SOURCE.rglob("*.py")) - TABLE), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_no_family_outside_the_table(path):
    assert not family_uses(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "code",
    ['spec.family == "x"', 'kind in ("llama", "qwen2")', 'TABLE["mixtral"]', "TABLE[spec.family]"],
)
def test_the_test_can_fail(code):
    assert family_uses(ast.parse(code))
