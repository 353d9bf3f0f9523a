"""The border of a module: what another one imports from it is public, and named in `__all__`."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fastgen"
MODULES = sorted(PACKAGE.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def file_of(parts: tuple[str, ...]) -> Path | None:
    """The file of a module `fastgen.<parts>`; None if there is no such module."""
    module = PACKAGE.joinpath(*parts)
    files = (module / "__init__.py", PACKAGE.joinpath(*parts[:-1], f"{module.name}.py"))
    return next((file for file in files if file.exists()), None)


def imported(path: Path) -> Iterator[tuple[Path, str]]:
    """(file, name) for every name that a module of the package imports from another one."""
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = tuple(node.module.split(".")) if node.module else ()
        if node.level:
            module = here[: len(here) - node.level + 1] + module
        elif module[:1] == ("fastgen",):
            module = module[1:]
        else:
            continue
        source = file_of(module)
        assert source is not None, f"{path}: no module {'.'.join(module)}"
        for alias in node.names:
            # A module that is imported as a whole crosses no border.
            if file_of((*module, alias.name)) is None:
                yield source, alias.name


def declared(path: Path) -> list[str] | None:
    """The names in a module's `__all__`; None if it has none."""
    for node in parsed(path).body:
        if isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets):
            return ast.literal_eval(node.value)
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_public_names_cross_a_border(path: Path):
    crossing = []
    for source, name in imported(path):
        public = declared(source)
        private = name.startswith("_") and not name.endswith("__")
        if private or (public is not None and name not in public):
            crossing.append(f"{name} of {source.relative_to(PACKAGE)}")
    assert not crossing


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_module_declares_is_there_and_public(path: Path):
    names = declared(path) or []
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith("_")]
    defined = set()
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        else:
            stored = (part for part in ast.walk(node) if isinstance(part, ast.Name))
            defined |= {part.id for part in stored if isinstance(part.ctx, ast.Store)}
    has_getattr = "__getattr__" in defined  # names that are loaded when they are asked for
    assert has_getattr or not set(names) - defined
