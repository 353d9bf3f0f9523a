"""Sizes: what a reader must hold in mind at once stays small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for folder in ("fastgen", "recipes", "tools", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "lie_learn" not in path.parts
)
MOST_LINES = 400
MOST_LINES_OF_A_CLASS = 250
MOST_LINES_OF_A_BODY = 60


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is a text alone, as a docstring is."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def too_long(path: Path) -> list[str]:
    """Classes and functions of a file that are too long; a docstring is no part of a body."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            most = MOST_LINES_OF_A_CLASS
        elif isinstance(node, ast.FunctionDef):
            body = node.body[1:] if is_text(node.body[0]) and len(node.body) > 1 else node.body
            lines = (node.end_lineno or 0) - body[0].lineno + 1
            most = MOST_LINES_OF_A_BODY
        else:
            continue
        if lines > most:
            found.append(f"{node.name}: {lines} lines")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_classes_and_functions_are_short(path: Path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES
    assert not too_long(path)
